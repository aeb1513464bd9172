"""The `cocu` command (also `python -m cocu_jax`), with all tools of the project as subcommands."""

import importlib
import sys

# Command, the module whose `main()` it runs, and one line for the overview.
COMMANDS = {
    "segment": ("cocu_jax.segment", "segment photos into any classes"),
    "app": ("cocu_jax.app.__main__", "segment photos and browse curations in a web browser"),
    "prepare": ("data_prep.__main__", "convert corpora and benchmarks to TFDS datasets"),
    "weights": ("cocu_jax.models.weights.__main__", "convert checkpoints"),
    "run": ("cocu_jax.run", "run a job (curate, train, evaluate, demo), as `python main.py`"),
}


def main() -> int | None:
    """Runs the subcommand in `sys.argv`; returns its exit status."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name not in COMMANDS:
        print(f"error: no command {name!r}\n\n{_overview()}", file=sys.stderr)
        return 2
    sys.argv = [f"cocu {name}", *rest]
    return importlib.import_module(COMMANDS[name][0]).main()


def _overview() -> str:
    lines = [f"  {name:<10}{line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(["usage: cocu COMMAND …", "", *lines, "", "Each has its own --help."])


if __name__ == "__main__":
    sys.exit(main())
