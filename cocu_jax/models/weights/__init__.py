"""Checkpoints in and out: Hugging Face folders and the authors' files."""
