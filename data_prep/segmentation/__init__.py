"""Segmentation benchmarks: from their official files to TFDS datasets."""
