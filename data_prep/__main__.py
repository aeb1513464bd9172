"""Prepares data: `python -m data_prep COMMAND --help`.

Every command is a module with `add_arguments(parser)` and `run(arguments)`, imported only when it
is run, so that a missing dependency of one command does not affect the others.
"""

import argparse
import importlib
import sys

from absl import logging

from cocu_jax.errors import UserError
from cocu_jax.files import expand_path
from cocu_jax.quiet import quiet_libraries
from cocu_jax.stopping import Stopped

# Command, its module, and one line for the overview.
COMMANDS = {
    "scenes": ("data_prep.scenes.prepare", "draw OpenMoji Scenes, the demo corpus"),
    "image_text": (
        "data_prep.image_text.command",
        "an image-text corpus from tars, tables, folders …",
    ),
    "gallery": ("data_prep.gallery.mining", "a gallery of concepts from a corpus's captions"),
    "imagenet": ("data_prep.imagenet", "ImageNet-1k validation, for zero-shot classification"),
    "segmentation": (
        "data_prep.segmentation.prepare",
        "a segmentation benchmark from its official files",
    ),
}

_ADDRESSES = ("cluster", "beam")  # flags that hold addresses of machines


def main(argv: list[str] | None = None) -> None:
    """Runs the command that `argv` (default: `sys.argv`) names."""
    argv = sys.argv[1:] if argv is None else argv
    overview = "\n".join(f"  {name:<14}{line}" for name, (_, line) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Prepare data for curation, training and evaluation.",
        epilog=f"commands:\n{overview}\n\nEach has its own --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=not argv or argv[0] not in COMMANDS,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    name = parser.parse_known_args(argv)[0].command
    with quiet_libraries():
        module = importlib.import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(prog=f"python -m data_prep {name}")
    module.add_arguments(parser)
    arguments = parser.parse_args(argv[1:])
    if "tensorflow_datasets" in sys.modules:  # a gallery of a text file does without
        from cocu_jax.host_tensorflow import keep_off_accelerators

        keep_off_accelerators()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of configurations that are meant
    try:
        expand_paths(arguments)
        module.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
    except Exception as error:
        if not type(error).__module__.startswith("tensorflow."):
            raise
        reason = str(error).partition("\n")[0]  # of a bucket, or of a kind of address
        print(f"error: {reason}; check the address, and who may open it", file=sys.stderr)
        sys.exit(2)


def expand_paths(arguments: argparse.Namespace) -> None:
    """Expands `~` in arguments, which shells do not expand after `--data_dir=`.

    Raises:
        UserError: an argument is an address of a kind that cannot be opened.
    """
    for name, value in vars(arguments).items():
        if name in _ADDRESSES:
            continue
        if isinstance(value, str):
            setattr(arguments, name, expand_path(value))
        elif isinstance(value, list):
            paths = [expand_path(part) if isinstance(part, str) else part for part in value]
            setattr(arguments, name, paths)


if __name__ == "__main__":
    main()
