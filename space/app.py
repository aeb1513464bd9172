"""The app as a Space of the Hugging Face Hub, see README.md beside this file."""

import os
import sys

from cocu_jax.app.__main__ import main

CHECKPOINTS = os.environ.get("CHECKPOINTS", "openai/clip-vit-base-patch16").split()
PORT = os.environ.get("GRADIO_SERVER_PORT", "7860")

sys.exit(main(["--checkpoint", *CHECKPOINTS, "--host", "0.0.0.0", "--port", PORT]))
