"""The parts of the benchmark, in the order in which they run."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.accelerator import step
from benchmarks.accelerator.agreement import agreement
from benchmarks.accelerator.attention import attention
from benchmarks.accelerator.embedding import embedding
from benchmarks.accelerator.nearest import nearest


class Part(NamedTuple):
    """A part, which runs in a process of its own.

    Attributes:
        run: prints its figures; takes whether to run at a toy size.
        least_seconds: with less left it is not begun.
    """

    run: Callable[[bool], None]
    least_seconds: int


# XLA and torch take one to three minutes to compile a step.
PARTS = {
    "step/256 kept": Part(functools.partial(step.ours, 256, False), 100),
    "step/256 torch": Part(functools.partial(step.torchs, 256), 100),
    "attention": Part(attention, 30),
    "search": Part(nearest, 20),
    "embedding/B32": Part(functools.partial(embedding, "B/32"), 30),
    "agreement": Part(agreement, 40),
    "embedding/L14": Part(functools.partial(embedding, "L/14"), 40),
    "embedding/B16": Part(functools.partial(embedding, "B/16"), 40),
    "step/1024 kept": Part(functools.partial(step.ours, 1024, False), 100),
    "step/1024 torch": Part(functools.partial(step.torchs, 1024), 60),
    "step/512 kept": Part(functools.partial(step.ours, 512, False), 100),
    "step/256 recomputed": Part(functools.partial(step.ours, 256, True), 100),
    "step/1024 recomputed": Part(functools.partial(step.ours, 1024, True), 100),
    "step/512 torch": Part(functools.partial(step.torchs, 512), 60),
    "step/512 recomputed": Part(functools.partial(step.ours, 512, True), 100),
}
