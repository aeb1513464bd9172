"""Renders the scenes of a split, in order, on every core.

This module and its imports do not use TensorFlow, so that worker processes start quickly.
"""

import dataclasses
import functools
import io
import multiprocessing
import os
import signal
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_prep.scenes.captions import kept_in_clip, kept_in_pretrain, write_caption
from data_prep.scenes.composition import Scene, compose_scene
from data_prep.scenes.settings import ScenesConfig

_CHUNK = 64  # scenes that a worker draws between two messages
_WORTH_WORKERS = 2_000  # below this, starting processes takes longer than drawing


@dataclasses.dataclass(frozen=True)
class CaptionedScene:
    """A scene as it is stored.

    Attributes:
        key: name of the scene; `pretrain` and `complete` use the same ones.
        image, segmentation: PNG bytes.
        caption: English text.
        concepts: names of everything the scene shows, things first.
    """

    key: str
    image: bytes
    segmentation: bytes
    caption: str
    concepts: tuple[str, ...]


def render_scene(settings: ScenesConfig, split: str, index: int) -> CaptionedScene:
    """Scene `index` of a split; depends on nothing else."""
    pictures = "pretrain" if split == "complete" else split
    scene = compose_scene(settings, _generator(settings, f"{pictures} scene", index))
    caption = _caption(settings, split, scene, _generator(settings, f"{split} caption", index))
    return CaptionedScene(
        key=f"{pictures}-{index:07d}",
        image=_png(scene.image),
        segmentation=_png(scene.labels),
        caption=caption,
        concepts=scene.things + scene.stuff,
    )


def render_split(
    settings: ScenesConfig, split: str, processes: int | None = None
) -> Iterator[CaptionedScene]:
    """All scenes of a split in order, the same for any number of processes.

    Args:
        settings: which scenes.
        split: name of the split.
        processes: how many draw; by default one per usable core if there is enough to draw.
    """
    count = settings.split_sizes[split]
    render = functools.partial(render_scene, settings, split)
    processes = processes or (_usable_cores() if count >= _WORTH_WORKERS else 1)
    if processes == 1:
        yield from map(render, range(count))
        return
    # Spawned, not forked: the parent may run TensorFlow's and JAX's threads.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=_leave_interrupts_to_parent) as pool:
        yield from pool.imap(render, range(count), chunksize=_CHUNK)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _generator(settings: ScenesConfig, purpose: str, index: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, zlib.crc32(purpose.encode()), index])


def _caption(settings: ScenesConfig, split: str, scene: Scene, rng: np.random.Generator) -> str:
    kept = scene.things + scene.stuff
    if split == "clip":
        kept = kept_in_clip(rng, kept)
    elif split == "pretrain":
        kept = kept_in_pretrain(rng, settings, scene.things, scene.stuff)
    things = [name for name in scene.things if name in kept]
    stuff = [name for name in scene.stuff if name in kept]
    return write_caption(rng, things, stuff)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
