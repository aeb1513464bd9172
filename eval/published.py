"""Published figures for the model, method and protocol of a result."""

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

_FILE = pathlib.Path(__file__).with_name("published.json")


@functools.cache
def published() -> dict[str, Any]:
    """`rows` of figures (in %, by benchmark), and the `sources` that published them."""
    return json.loads(_FILE.read_text())


def find_published(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row of the same method, model and protocol, or None.

    A result with any other changed setting (threshold, prompts, mode) has no published figure. The
    model is recognised by the name of its checkpoint only, so a row is meant for comparison.

    Args:
        figures: a result of `eval.job`.
    """
    settings = figures.get("settings")
    if not settings or set(figures["changes"]) - {"protocol", "pamr", "dense", "class_names"}:
        return None
    checkpoint = figures["checkpoint"].lower()
    for row in published()["rows"]:
        same = all(row[name] == settings[name] for name in ("protocol", "dense", "pamr"))
        if same and row["checkpoint"] and re.search(row["checkpoint"], checkpoint):
            return row
    return None
