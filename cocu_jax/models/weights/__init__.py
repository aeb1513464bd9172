"""Reads and writes checkpoints: Hugging Face, open_clip, OpenAI, the GroupViT authors, our runs."""
