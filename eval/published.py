"""Published figures, found by what a result was evaluated with."""

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

_FILE = pathlib.Path(__file__).with_name("published.json")


@functools.cache
def published() -> dict[str, Any]:
    """`rows` of figures, in %, by benchmark, and the `sources` that print them."""
    return json.loads(_FILE.read_text())


def find_published(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row of the same method, model and protocol, or None.

    Settings that no row has (a threshold, prompts or a mode of one's own) have no published figure.
    The model is known by the checkpoint's name alone: a row is for comparison, no proof.

    Args:
        figures: a result of `job`.
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
