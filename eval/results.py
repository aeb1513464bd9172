"""Results on disk, each with an identity: everything that the result depends on."""

import dataclasses
import hashlib
import json
import math
from typing import Any

import ml_collections
from etils import epath

from cocu_jax.files import write_file
from eval.tasks import Task

_RULE = 2  # version of the evaluation; incremented when the same inputs give other figures


def result_identity(
    task: Task, config: ml_collections.ConfigDict, model: str, method: Any, preparation: Any
) -> dict:
    """Everything that a result depends on; a stored result is reused only if this is equal.

    Args:
        task: dataset, protocol and class names.
        config: the evaluation's config (`dtype`, `limit`, `classification_templates`).
        model: fingerprint of the model.
        method: the method of `eval.segmenter`; None for classification.
        preparation: preprocessing of images for the model.
    """
    # The masks of one's own dataset can change without changing its fingerprint.
    content = task.corpus.metadata.get("content")
    classes = task.classes or tuple(task.corpus.metadata.get("classes", ()))
    fields = {
        "rule": _RULE,
        "model": model,
        "dtype": config.dtype,
        "dataset": task.corpus.fingerprint,
        **({"content": content} if content else {}),
        "classes": hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16],
        "protocol": task.protocol and dataclasses.asdict(task.protocol),
        "templates": task.protocol is None and config.classification_templates,
        "method": repr(method),
        "preparation": repr(preparation),
        "limit": config.limit,
    }
    return json.loads(json.dumps(fields))


def read_result(file: epath.Path, identity: dict) -> dict | None:
    """The figures in `file`; None if it is missing, damaged, or has another identity."""
    record = read_record(file)
    return record if record is not None and record["identity"] == identity else None


def read_record(file: epath.Path) -> dict | None:
    """The figures in `file`, whatever their identity; None if it is missing or damaged."""
    try:
        record = json.loads(file.read_text())
        return record if record.keys() >= {"identity", "title", "images"} else None
    except (OSError, ValueError, AttributeError):
        return None


def read_all(folder: epath.Path) -> dict[str, dict]:
    """All figures in a directory of results, by name."""
    files = sorted(folder.glob("*.json")) if folder.exists() else ()
    records = ((file.stem, read_record(file)) for file in files)
    return {name: record for name, record in records if record is not None}


def write_result(file: epath.Path, figures: dict) -> None:
    """Writes figures as JSON. JSON has no NaN, so undefined scores become null."""
    write_file(file, json.dumps(without_nan(figures), indent=2))


def without_nan(figures: dict) -> dict:
    """The figures with None in place of NaN."""
    return {key: _plain(value) for key, value in figures.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return without_nan(value)
    return None if isinstance(value, float) and math.isnan(value) else value
