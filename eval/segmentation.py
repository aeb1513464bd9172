"""Zero-shot segmentation of a benchmark: model, dataset and protocol in, scores out."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Int

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest
from eval import confusion
from eval.images import read_images
from eval.prediction import Prediction, finish
from eval.protocol import Protocol
from eval.segmenter import make_segmenter


@dataclasses.dataclass(frozen=True)
class SegmentationResult:
    """Counts of one benchmark; every figure is read off them.

    Attributes:
        classes: class names, background included.
        confusion: pixels of each true class (row) by predicted class (column).
        group_confusion: the same if every group of every window were called by the class that
            holds most of it: how good the groups are, whatever their names. None for methods
            without groups.
        images: number of images counted.
    """

    classes: tuple[str, ...]
    confusion: Int[np.ndarray, "c c"]
    group_confusion: Int[np.ndarray, "c c"] | None
    images: int

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, in [0, 1]."""
        return confusion.mean_iou(self.confusion)

    @property
    def bound_miou(self) -> float | None:
        """Mean IoU of the best names for the groups, in [0, 1]; None without groups."""
        if self.group_confusion is None:
            return None
        return confusion.mean_iou(self.group_confusion)

    @property
    def constant_miou(self) -> float:
        """Mean IoU of calling everything the most frequent class, in [0, 1]."""
        return confusion.constant_mean_iou(self.confusion)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that were called right."""
        return confusion.pixel_accuracy(self.confusion)

    @property
    def iou(self) -> dict[str, float]:
        """IoU of each class; NaN where neither truth nor prediction has it."""
        return dict(zip(self.classes, confusion.iou(self.confusion).tolist(), strict=True))

    @property
    def accuracy(self) -> dict[str, float]:
        """Found share of each true class; NaN where the truth lacks it."""
        scores = confusion.class_accuracy(self.confusion)
        return dict(zip(self.classes, scores.tolist(), strict=True))


def evaluate_segmentation(
    model: nnx.Module,
    corpus: Corpus,
    protocol: Protocol,
    tokenizer: Tokenizer,
    *,
    classes: tuple[str, ...] | None = None,
    method: Any = None,
    windows_per_forward: int = 0,
    limit: int | None = None,
    title: str = "Zero-shot segmentation",
    stop: StopRequest | None = None,
    visit: Callable[[Prediction], None] | None = None,
) -> SegmentationResult:
    """Evaluates a model on a segmentation dataset, on all devices of all processes.

    Args:
        model: a GroupViT.
        corpus: the dataset, see `data_prep.segmentation`.
        protocol: the benchmark's settings.
        tokenizer: the tokenizer.
        classes: other names for the dataset's classes, same order; None takes the dataset's.
        method: how the model is read, see `eval.segmenter`; None takes GroupViT's groups.
        windows_per_forward: windows that each device encodes at once; 0 chooses by crop and device.
        limit: only the first so many images.
        title: of the progress bar.
        stop: asks between batches whether to stop.
        visit: called with the label map of every image of this process; without it, none leaves
            the devices.

    Raises:
        UserError: protocol, classes or dataset do not fit each other.
        Stopped: on request.
    """
    classes = _checked_classes(corpus, protocol, classes)
    segmenter = make_segmenter(model, classes, protocol, tokenizer, windows_per_forward, method)
    index, processes = jax.process_index(), jax.process_count()
    images = read_images(corpus, protocol, index, processes, limit)
    kinds = 2 if hasattr(segmenter.method, "rename") else 1
    total = np.zeros((kinds, len(classes), len(classes)), np.int64)
    done, waiting, unfinished = 0, collections.deque(), {}
    mine = len(range(index, min(corpus.num_examples, limit or corpus.num_examples), processes))
    with progress_bar(title, mine, "images") as bar:
        for painted in segmenter.paint(segmenter.read(images)):
            if stop and stop.requested:
                raise Stopped(f"{title}: stopped after {done} images; run the same command again")
            waiting.append(painted.matrices)
            if visit:
                for prediction in finish(painted, protocol, unfinished):
                    visit(prediction)
            if len(waiting) > 2:  # the host prepares the next batches while the devices work
                total += np.asarray(waiting.popleft())
            members = sum(piece.last for piece, _ in painted.pieces)
            done += members
            bar.update(members)
        for matrices in waiting:
            total += np.asarray(matrices)
    total, done = _sum_processes(total), int(_sum_processes(np.array(done)))
    return SegmentationResult(classes, total[0], total[1] if kinds == 2 else None, done)


def _checked_classes(
    corpus: Corpus, protocol: Protocol, classes: tuple[str, ...] | None
) -> tuple[str, ...]:
    missing = {"classes", "has_background", "ignore_label"} - corpus.metadata.keys()
    if missing or "segmentation" not in corpus.features:
        lacks = ", ".join(sorted(missing)) or "masks"
        raise UserError(
            f"{corpus.directory}: not a segmentation dataset (it lacks {lacks}); "
            "prepare one with: python -m data_prep segmentation --help"
        )
    own = tuple(corpus.metadata["classes"])
    if corpus.metadata["has_background"] != protocol.has_background:
        raise UserError(
            f"{corpus.directory}: has_background is {corpus.metadata['has_background']} in the "
            f"dataset, {protocol.has_background} in the protocol; use the benchmark's own protocol"
        )
    if classes is not None and len(classes) != len(own):
        raise UserError(
            f"{corpus.directory}: has {len(own)} classes, got {len(classes)} names; "
            "give one name per class, in the dataset's order"
        )
    return tuple(classes or own)


def _sum_processes(counts: np.ndarray) -> np.ndarray:
    """Sum over processes. Halves travel apart: JAX would cut 64-bit integers to 32 bits."""
    if jax.process_count() == 1:
        return counts
    halves = np.stack([counts >> 31, counts & 0x7FFFFFFF]).astype(np.uint32)
    high, low = np.moveaxis(multihost_utils.process_allgather(halves), 1, 0).astype(np.int64)
    return high.sum(0) * 2**31 + low.sum(0)
