"""Starts one job: `python main.py --config=configs/cocu.py --workdir=runs/cocu`, or `cocu run …`.

`config.job` selects the job, a function of (config, workdir). This module reads the flags, connects
to the other hosts, and prints errors in one line.
"""

import ast
import glob
import importlib.util
import logging as standard_logging
import os
import pathlib
import signal
import sys

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

import configs
from cocu_jax.deterministic import DETERMINISTIC_FLAG
from cocu_jax.errors import UserError
from cocu_jax.files import expand_path
from cocu_jax.stopping import Stopped

JOBS = {
    "train": "cocu_jax.training.loop:train",
    "curate": "cocu_jax.curation.job:curate",
    "evaluate": "eval.job:evaluate",
    "demo": "cocu_jax.demo.job:run_demo",
}
# Files in the work directory that are printed or named at the end; other jobs print their results.
RESULTS = {"train": ("metrics.json", "export"), "curate": ("summary.txt", "examples.html")}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the job, e.g. configs/demo.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run, local or gs://.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", None, "Connect to other hosts; default: automatic.")
_COMPILE_FOR = flags.DEFINE_string(
    "compile_for", None, "Only compile, for a TPU slice, e.g. v5e-256."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only check that training could start.")


def main() -> None:
    """Reads the flags from `sys.argv` and runs the job of the config."""
    logging.set_verbosity(logging.WARNING)
    for flag in (_CONFIG, _WORKDIR, _DISTRIBUTED, _COMPILE_FOR, _DRY_RUN):  # shown by --help
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    flags.mark_flag_as_required("config")
    app.run(_run_job, argv=[sys.argv[0], *map(_shipped_config, sys.argv[1:])], flags_parser=_parse)


def _run_job(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        run(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)


def run(config, workdir: str) -> None:
    """Runs the job, the dry run, or the ahead-of-time compiler.

    Raises:
        UserError: the job does not exist, or the flags do not match it.
    """
    if config.job not in JOBS:
        raise UserError(f"config.job={config.job!r} is not a job; choose one of {', '.join(JOBS)}")
    expand_paths(config)
    if _COMPILE_FOR.value:
        from cocu_jax.training.ahead_of_time import compile_for

        return compile_for(config, _COMPILE_FOR.value)
    if _DRY_RUN.value and config.job != "train":
        raise UserError(f"--dry_run works with train configs only; config.job is {config.job!r}")
    if not workdir and not _DRY_RUN.value:
        raise UserError("--workdir is not set; give this run a directory, e.g. --workdir=runs/demo")
    workdir = workdir and expand_path(workdir)
    if config.job == "train":
        prepare_training(config)
    if _DISTRIBUTED.value or (_DISTRIBUTED.value is None and _in_cluster()):
        _join_hosts()
    from cocu_jax.host_tensorflow import keep_off_accelerators

    keep_off_accelerators()
    if _DRY_RUN.value:
        from cocu_jax.training.dry_run import dry_run

        return dry_run(config)
    module, function = JOBS[config.job].split(":")
    getattr(importlib.import_module(module), function)(config, workdir)
    _print_results(config.job, epath.Path(workdir))


def expand_paths(part) -> None:
    """Expands `~` at the start of all strings of a config, including those in comma lists.

    Raises:
        UserError: a string is an address that cannot be opened.
    """
    if not isinstance(part, ml_collections.ConfigDict | dict):
        return
    texts = {name: value for name, value in part.items() if isinstance(value, str)}
    for name, value in texts.items():  # before the parts, whose texts may be made of these
        resolved = ",".join(map(expand_path, value.split(",")))
        if resolved != value:
            part[name] = resolved
    for value in part.values():
        for inner in value if isinstance(value, list | tuple) else (value,):
            expand_paths(inner)


def _print_results(job: str, workdir: epath.Path) -> None:
    """Prints text results, and the paths of all other results."""
    import jax

    if jax.process_index() != 0:
        return
    for path in (workdir / name for name in RESULTS.get(job, ())):
        if path.suffix == ".txt" and path.exists():
            print(path.read_text(), end="\n\n")
        elif path.exists():
            print(path)


def prepare_training(config) -> None:
    """Sets environment variables for XLA and TensorFlow's bucket reader, and logging filters."""
    if config.get("deterministic"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC_FLAG}".strip()
    logging.get_absl_handler().addFilter(_is_not_logged_twice)
    sys.unraisablehook = _print_unless_abandoned
    # Training reads small parts of shards; TensorFlow would fetch 64 MB for each of them.
    os.environ.setdefault("GCS_READ_CACHE_BLOCK_SIZE_MB", "1")


def _print_unless_abandoned(unraisable) -> None:
    """Ignores errors of writes that tensorstore finishes after Orbax has cancelled the checkpoint.

    This happens on a full disk, for instance: every such write raises in a thread of its own.
    """
    error = unraisable.exc_value
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _is_not_logged_twice(record: standard_logging.LogRecord) -> bool:
    """False for errors that Orbax logs with a traceback and also raises."""
    of_orbax = any(f"{os.sep}{name}{os.sep}" in record.pathname for name in ("orbax", "asyncio"))
    return record.levelno < standard_logging.ERROR or not of_orbax


def _shipped_config(argument: str) -> str:
    """Replaces `--config=configs/…` with the installed config file if there is no such file."""
    flag, _, path = argument.partition("=")
    name, _, _ = path.partition(":")
    shipped = pathlib.Path(configs.__file__).parent
    if flag not in ("--config", "-config") or os.path.exists(name):
        return argument
    if name.startswith("configs/") and (shipped.parent / name).is_file():
        return f"{flag}={shipped.parent / path}"
    return argument


class _PartParser(flags.ArgumentParser):
    """Parses a part of a config from a Python literal: a dictionary, several of them, or None."""

    def parse(self, argument: object) -> object:
        """Parses a flag; values other than strings are defaults of the config and are returned."""
        if not isinstance(argument, str):
            return argument
        value = ast.literal_eval(argument)
        if isinstance(value, tuple) and all(isinstance(part, dict) for part in value):
            return tuple(ml_collections.ConfigDict(part) for part in value)
        if value is None or isinstance(value, dict):
            return value and ml_collections.ConfigDict(value)
        raise ValueError("expected a dictionary, several dictionaries, or None")


config_flags.register_flag_parser_for_type(ml_collections.ConfigDict, _PartParser())


def _parse(argv: list[str]) -> list[str]:
    """Parses the command line; prints errors in it or in the config file in one line."""
    try:
        rest = flags.FLAGS(argv)
        getattr(_CONFIG.value, "job", None)  # raises the error of reading the config file
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error).replace("\\n", "\n").replace("\\", "")
        if isinstance(error, (AttributeError, KeyError)):  # the message may be just the name
            text = text.strip("'\"")
            text = text if " " in text else f"there is no field {text!r}"
        if "Traceback" in text:  # from the config file: print its name and the last line
            flag, _, trace = text.partition(": Error whilst")
            sys.exit(f"error: {flag}: {trace.strip().splitlines()[-1].split(': ', 1)[-1]}")
        sys.exit(f"error: in the flags or the config file: {' '.join(text.split())}")


def _in_cluster() -> bool:
    """Whether this is one of several Slurm tasks, or a TPU VM."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return tasks > 1 or bool(chips and importlib.util.find_spec("libtpu"))


def _join_hosts() -> None:
    """Connects to the other hosts, which JAX finds by TPU metadata, Slurm, or its own variables."""
    import jax

    # JAX assigns one GPU to a Slurm task; the only task of a node should use all of its GPUs.
    has_node = os.environ.get("SLURM_STEP_NUM_NODES") == os.environ.get("SLURM_NTASKS", "")
    try:
        jax.distributed.initialize(local_device_ids=[] if has_node else None)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"cannot connect to other hosts ({reason}); on one host: --nodistributed"
        ) from None
    # JAX has installed a handler that ignores SIGTERM for whoever does not ask its preemption
    # service. Until a job reacts to signals (`Agreement`), they should end the program.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
