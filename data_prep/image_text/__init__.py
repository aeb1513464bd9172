"""Image-text corpora: from raw files of many kinds to TFDS datasets."""
