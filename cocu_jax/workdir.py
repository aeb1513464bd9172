"""The directory of a run, which belongs to one config; runs with another config are refused."""

import json
import re

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
    """Creates `path`, or reopens it if it was created with the same config.

    Args:
        path: local or `gs://` directory.
        config: the run's config; saved as `config.json` in the directory.
        free_fields: dotted names of fields that may differ between runs in one directory, such as
            the logging interval; names of a sequence's entries have no index.
        writer: whether this process writes (process 0); the others only check the config.

    Returns:
        The directory.

    Raises:
        UserError: the directory cannot be written, or belongs to another config.
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


def _first_difference(old, new, free_fields: tuple[str, ...], name: str = ""):
    """(dotted name, old value, new value) of the first field that differs, or None."""
    if re.sub(r"\[\d+\]", "", name) in free_fields:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            (f"{name}.{key}" if name else key, old.get(key), new.get(key))
            for key in sorted(old.keys() | new.keys())
        ]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        parts = [(f"{name}[{index}]", *pair) for index, pair in pairs]
    else:
        return None if old == new else (name, old, new)
    differences = (_first_difference(*pair, free_fields, part) for part, *pair in parts)
    return next(filter(None, differences), None)
