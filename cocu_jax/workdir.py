"""A run's directory: made once, bound to one config, refused to any other."""

import json

import ml_collections
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.files import write_file

_CONFIG_FILE = "config.json"


def open_workdir(
    path: str,
    config: ml_collections.ConfigDict,
    free_fields: tuple[str, ...] = (),
    writer: bool = True,
) -> epath.Path:
    """Creates `path`, or reopens it if the same config made it.

    Args:
        path: local or `gs://` directory.
        config: the run's config; saved as `config.json` in the directory.
        free_fields: dotted names of fields that may differ between runs of one directory
            (how often to log, which stages to run).
        writer: whether this process writes (process 0); the others only check.

    Returns:
        The directory.

    Raises:
        UserError: the directory cannot be written, or another config made it.
    """
    workdir = epath.Path(path)
    fields = json.loads(config.to_json_best_effort())
    saved_file = workdir / _CONFIG_FILE
    try:
        if writer:
            workdir.mkdir(parents=True, exist_ok=True)
        if saved_file.exists():
            difference = _first_difference(json.loads(saved_file.read_text()), fields, free_fields)
            if difference:
                name, before, now = difference
                raise UserError(
                    f"{workdir}: made with config.{name}={before}, this run has {now}; "
                    "use another --workdir, or the same config to continue"
                )
        if writer:
            write_file(saved_file, json.dumps(fields, indent=2))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{workdir}: cannot write there ({reason}); choose another --workdir"
        ) from None
    except json.JSONDecodeError:
        raise UserError(
            f"{saved_file}: not readable as JSON; remove it or use another --workdir"
        ) from None
    return workdir


def _first_difference(before, now, free_fields: tuple[str, ...], prefix: str = ""):
    """(dotted name, old value, new value) of the first field that differs, or None."""
    for name in sorted(before.keys() | now.keys()):
        dotted = f"{prefix}{name}"
        if dotted in free_fields:
            continue
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := _first_difference(old, new, free_fields, f"{dotted}."):
                return found
        elif old != new:
            return dotted, old, new
    return None
