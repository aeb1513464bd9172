"""Zero-shot segmentation of a benchmark: model, dataset and protocol in, scores out."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped
from eval import confusion
from eval.images import read_images
from eval.partial import PartialCounts
from eval.prediction import Prediction, finish
from eval.protocol import Protocol
from eval.segmenter import Painted, make_segmenter


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
        return self._by_class(confusion.iou(self.confusion))

    @property
    def accuracy(self) -> dict[str, float]:
        """Found share of each true class; NaN where the truth lacks it."""
        return self._by_class(confusion.class_accuracy(self.confusion))

    def _by_class(self, scores: Float[np.ndarray, "c"]) -> dict[str, float]:
        """ImageNet-S-919 has two cranes and two cardigans: the second of a name is `crane (2)`."""
        seen, named = collections.Counter(), {}
        for name, score in zip(self.classes, scores.tolist(), strict=True):
            seen[name] += 1
            named[f"{name} ({seen[name]})" if seen[name] > 1 else name] = score
        return named


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
    stop: Callable[[int], bool] | None = None,
    visit: Callable[[Prediction], None] | None = None,
    partial: PartialCounts | None = None,
    tile: tuple[int, int] | None = None,
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
        stop: (images) -> whether to stop, asked with the number of images just finished. Several
            processes ask for the same number in all, so that they can agree on where to stop
            (`cocu_jax.agreement`).
        visit: called with the label map of every image of this process; without it, none leaves
            the devices.
        partial: where counts are kept now and then, and taken up again; None keeps none.
        tile: short and long side of what a device paints at once; None takes the default.

    Raises:
        UserError: protocol, classes or dataset do not fit each other.
        Stopped: on request.
    """
    classes = _checked_classes(corpus, protocol, classes)
    segmenter = make_segmenter(model, classes, protocol, tokenizer, windows_per_forward, method)
    segmenter = dataclasses.replace(segmenter, tile=tile)
    index, processes = jax.process_index(), jax.process_count()
    images = min(corpus.num_examples, limit or corpus.num_examples)
    kinds = 2 if hasattr(segmenter.method, "rename") else 1
    counts = _Counts(kinds, len(classes), images, partial)
    examples = read_images(corpus, protocol, index, processes, limit, np.flatnonzero(counts.done))
    unfinished = {}
    share, mine = (len(range(first, images, processes)) for first in (0, index))
    asked = 0
    with progress_bar(title, mine, "images", done=int(counts.done.sum())) as bar:
        for painted in segmenter.paint(segmenter.read(examples)):
            if visit:
                for prediction in finish(painted, protocol, unfinished):
                    visit(prediction)
            counts.add(painted)
            finished = sum(piece.last for piece, _ in painted.pieces)
            bar.update(finished)
            asked += finished
            if stop and stop(finished):
                done = counts.keep()
                raise Stopped(f"{title}: stopped after {done} images; run the same command again")
    if processes > 1 and stop and stop(share - asked):
        done = counts.keep()
        raise Stopped(f"{title}: stopped after {done} images; run the same command again")
    counts.take()
    total, done = _sum_processes(counts.total), int(_sum_processes(counts.done.sum()))
    return SegmentationResult(classes, total[0], total[1] if kinds == 2 else None, done)


class _Counts:
    """Confusion matrices of this process: on their way from the devices, added up, kept.

    Args:
        kinds: matrices per image.
        classes: their side.
        images: images of the corpus that are evaluated, by all processes.
        partial: where they are kept; None keeps nothing.
    """

    def __init__(self, kinds: int, classes: int, images: int, partial: PartialCounts | None):
        shape = kinds, classes, classes
        self.total, self.done = np.zeros(shape, np.int64), np.zeros(images, bool)
        if partial:
            self.total, self.done = partial.load(shape, images)
        self._partial, self._waiting, self._unfinished = partial, collections.deque(), {}

    def add(self, painted: Painted) -> None:
        """Adds matrices; the host does not wait for them but prepares the next batches."""
        self._waiting.append(painted)
        if len(self._waiting) > 2:
            self._take_one()

    def take(self) -> None:
        """Waits for all matrices."""
        while self._waiting:
            self._take_one()

    def keep(self) -> int:
        """Saves what is known of whole images; returns their number."""
        self.take()
        if self._partial:
            self._partial.save(self.total, self.done, at_once=True)
        return int(self.done.sum())

    def _take_one(self) -> None:
        painted = self._waiting.popleft()
        for (piece, _), matrices in zip(painted.pieces, np.asarray(painted.matrices), strict=False):
            image = piece.image.index
            matrices = self._unfinished.pop(image, 0) + matrices
            if piece.last:  # only whole images are added
                self.total += matrices
                self.done[image] = True
            else:
                self._unfinished[image] = matrices
        if self._partial:
            self._partial.save(self.total, self.done)


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
    counts = np.asarray(counts, np.int64)
    halves = np.stack([counts >> 31, counts & 0x7FFFFFFF]).astype(np.uint32)
    high, low = np.moveaxis(multihost_utils.process_allgather(halves), 1, 0).astype(np.int64)
    return high.sum(0) * 2**31 + low.sum(0)
