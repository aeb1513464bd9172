"""Checkpoints in and out: `python -m cocu_jax.models.weights --help`."""

import argparse
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"  # conversions leave accelerators to whoever is using them

from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.siglip import Siglip
from cocu_jax.models.weights.checkpoint import open_checkpoint
from cocu_jax.models.weights.convert import arrays
from cocu_jax.models.weights.huggingface import save_clip, save_groupvit, save_siglip
from cocu_jax.models.weights.official import save_official
from cocu_jax.models.weights.source import fingerprint

_DESCRIPTION = """\
Brings CLIP, SigLIP and GroupViT checkpoints in, and takes them out.

  import  from the Hugging Face hub (an id), a folder of Hugging Face's or open_clip's, OpenAI's
          .pt archive, a training checkpoint of open_clip, or the GroupViT authors' .pth file
          to a folder that every job of cocu-jax reads, and transformers too
  export  from such a folder, e.g. a run's export/
          to a Hugging Face folder ready to upload, or to the authors' .pth format

A training run of ours is a source of both: RUN, or RUN@STEP for one of its checkpoints.

Nothing in a checkpoint is executed. Every tensor is checked, and the target is written whole or
not at all.
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
    bring = commands.add_parser("import", help="bring a checkpoint in")
    bring.add_argument("source", help="hub id, folder, or .pt or .pth file")
    bring.add_argument("target", help="new folder to write")
    take = commands.add_parser("export", help="take a model out")
    take.add_argument("source", help="folder of the model, e.g. a run's export/")
    take.add_argument("target", help="new folder, or a file that ends in .pth")
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
    """Reads a model and writes it in the target's format; returns what was done, in one line.

    Raises:
        UserError: the source is not readable, the target is there already, or the model has no
            place in the target's format.
    """
    place = epath.Path(target)
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"{target}: is there already; remove it or choose another place")
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
            f"{source}: is a {kind}; .pth is the format of GroupViT only, give a folder"
        )
    count = sum(array.size for array in arrays(model).values())
    written = f"{target}: {type(model).__name__}, {count:,} values"
    return written if _is_official(target) else f"{written}, fingerprint {fingerprint(target)}"


def _is_official(name: str) -> bool:
    return name.endswith(".pth")


if __name__ == "__main__":
    sys.exit(main())
