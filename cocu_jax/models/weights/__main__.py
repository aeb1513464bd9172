"""Converts checkpoints: `python -m cocu_jax.models.weights --help`."""

import argparse
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"  # conversions need no accelerator, which may be in use

from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.files import expand_path
from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.siglip import Siglip
from cocu_jax.models.weights.checkpoint import open_checkpoint
from cocu_jax.models.weights.convert import arrays
from cocu_jax.models.weights.huggingface import save_clip, save_groupvit, save_siglip
from cocu_jax.models.weights.official import save_official
from cocu_jax.models.weights.source import fingerprint

_DESCRIPTION = """\
Converts checkpoints of CLIP, SigLIP and GroupViT.

  import  from a Hugging Face hub id, a Hugging Face or open_clip folder, OpenAI's .pt archive, a
          training checkpoint of open_clip, or the GroupViT authors' .pth file,
          to a folder that all jobs of cocu-jax and transformers can read
  export  from such a folder, e.g. the export/ of a run,
          to a Hugging Face folder that can be uploaded, or to the authors' .pth format

Both accept a training run: RUN, or RUN@STEP for one of its checkpoints.

No code in a checkpoint is executed. Every tensor is checked, and the target appears only when it is
complete.
"""
_EXAMPLES = """\
examples:
  python -m cocu_jax.models.weights import openai/clip-vit-base-patch32 models/clip
  python -m cocu_jax.models.weights import google/siglip2-base-patch16-224 models/siglip2
  python -m cocu_jax.models.weights import ViT-B-32.pt models/clip
  python -m cocu_jax.models.weights import group_vit_gcc_yfcc_30e.pth models/groupvit
  python -m cocu_jax.models.weights export runs/cocu/export cocu.pth
  python -m cocu_jax.models.weights export runs/cocu@12000 models/cocu_12000
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cocu_jax.models.weights",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="import | export")
    bring = commands.add_parser(
        "import", help="convert a checkpoint of any supported format to a folder"
    )
    bring.add_argument("source", help="hub id, folder, or .pt or .pth file")
    bring.add_argument("target", help="new folder to write")
    take = commands.add_parser("export", help="write a model in a format for other programs")
    take.add_argument("source", help="folder of the model, e.g. a run's export/")
    take.add_argument("target", help="new folder, or the name of a .pth file")
    options = parser.parse_args(arguments)
    try:
        if options.command == "import" and _is_official(options.target):
            raise UserError(f"{options.target}: import writes a folder; use export for a .pth")
        print(convert(options.source, options.target))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def convert(source: str, target: str) -> str:
    """Reads a model and writes it in the target's format; returns a one-line summary.

    Raises:
        UserError: the source is not readable, the target already exists, or its format does not
            support the model.
    """
    target = expand_path(target)
    path = epath.Path(target)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{target}: already exists; remove it or choose another place")
    checkpoint = open_checkpoint(source)
    model = checkpoint.model
    if not _is_official(target):
        save = {CLIP: save_clip, GroupViT: save_groupvit, Siglip: save_siglip}[type(model)]
        save(model, target, checkpoint.processing, checkpoint.tokenizer_files)
    elif isinstance(model, GroupViT):
        save_official(model, target)
    else:
        kind = type(model).__name__
        raise UserError(
            f"{source}: is a {kind}; only GroupViT can be written as .pth, so give a folder"
        )
    count = sum(array.size for array in arrays(model).values())
    written = f"{target}: {type(model).__name__}, {count:,} values"
    return written if _is_official(target) else f"{written}, fingerprint {fingerprint(target)}"


def _is_official(name: str) -> bool:
    return name.endswith(".pth")


if __name__ == "__main__":
    sys.exit(main())
