"""Zero-shot segmentation and classification: benchmarks in, tables and pictures out."""
