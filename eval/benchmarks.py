"""The published benchmarks and their settings. Does not import JAX, because `data_prep` uses it."""

import dataclasses
import functools
import json
import pathlib

from cocu_jax.errors import UserError
from eval.protocol import Protocol

_FILE = pathlib.Path(__file__).with_name("benchmarks.json")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark as published.

    Attributes:
        name: short name, as in configs and on command lines.
        title: full name, for tables.
        classes: class names in label order; a background class comes first.
        protocol: published settings.
        split_size: number of images of the official split.
        layout: description of the official files, for error messages.
        submission_ids: ids of the classes in the benchmark's own files.
        dataset: name of the prepared dataset: the benchmark's own, or that of another benchmark
            whose background class this one ignores (`voc20` is read from `voc`).
        wnids: WordNet ids of ImageNet-S's classes in label order, without background; empty for
            other benchmarks.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    protocol: Protocol
    split_size: int
    layout: str
    submission_ids: tuple[int, ...]
    dataset: str
    wnids: tuple[str, ...] = ()


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name; those with their own dataset come first."""
    return {name: _parse(name, fields) for name, fields in json.loads(_FILE.read_text()).items()}


def prepared_benchmarks() -> dict[str, Benchmark]:
    """The benchmarks that have their own dataset."""
    return {name: b for name, b in benchmarks().items() if b.dataset == name}


def get_benchmark(name: str) -> Benchmark:
    """Returns the benchmark of this name.

    Raises:
        UserError: there is no such benchmark.
    """
    if name not in benchmarks():
        known = ", ".join(benchmarks())
        raise UserError(f"{name!r} is not a benchmark; choose from {known}")
    return benchmarks()[name]


def _parse(name: str, fields: dict) -> Benchmark:
    protocol = Protocol(
        crop=fields["crop"],
        stride=fields["stride"],
        resize_long_short=tuple(fields["resize_long_short"]),
        has_background=fields["has_background"],
        bg_thresh=fields["bg_thresh"],
        large_images=fields.get("large_images") and tuple(fields["large_images"]),
    )
    return Benchmark(
        name=name,
        title=fields["title"],
        classes=tuple(fields["classes"]),
        protocol=protocol,
        split_size=fields["split_size"],
        layout=fields["layout"],
        dataset=fields.get("dataset", name),
        wnids=tuple(fields.get("wnids", ())),
        submission_ids=tuple(fields.get("submission_ids", range(len(fields["classes"])))),
    )
