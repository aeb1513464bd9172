"""Raw bytes to TFDS datasets on disk. Nothing in here imports JAX."""
