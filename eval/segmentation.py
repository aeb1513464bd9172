"""Zero-shot segmentation of a benchmark: from model, dataset and protocol to the figures."""

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
from eval.prediction import Prediction, assemble
from eval.protocol import Protocol
from eval.segmenter import DecodedTiles, make_segmenter


@dataclasses.dataclass(frozen=True)
class SegmentationResult:
    """Confusion matrices of one benchmark, and the figures that follow from them.

    Attributes:
        classes: class names, including background.
        confusion: pixels of each true class (row) by predicted class (column).
        group_confusion: the same if every group of every window had the class that holds most of
            its pixels. It measures how good the groups are, whatever their names. None for methods
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
        """Mean IoU if every group had its best name, in [0, 1]; None without groups."""
        if self.group_confusion is None:
            return None
        return confusion.mean_iou(self.group_confusion)

    @property
    def constant_miou(self) -> float:
        """Mean IoU of predicting the most frequent class everywhere, in [0, 1]."""
        return confusion.constant_mean_iou(self.confusion)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels whose predicted class is correct, in [0, 1]."""
        return confusion.pixel_accuracy(self.confusion)

    @property
    def iou(self) -> dict[str, float]:
        """IoU of each class; NaN for a class without true or predicted pixels."""
        return self._by_class(confusion.iou(self.confusion))

    @property
    def accuracy(self) -> dict[str, float]:
        """Recall of each class; NaN for a class without true pixels."""
        return self._by_class(confusion.class_accuracy(self.confusion))

    def _by_class(self, scores: Float[np.ndarray, "c"]) -> dict[str, float]:
        """Scores by name; the second class of a name (ImageNet-S-919 has two) is `crane (2)`."""
        occurrences, by_name = collections.Counter(), {}
        for name, score in zip(self.classes, scores.tolist(), strict=True):
            occurrences[name] += 1
            number = occurrences[name]
            by_name[f"{name} ({number})" if number > 1 else name] = score
        return by_name


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
    tile_size: tuple[int, int] | None = None,
) -> SegmentationResult:
    """Evaluates a model on a segmentation dataset, on all devices of all processes.

    Args:
        model: a GroupViT or a CLIP.
        corpus: the dataset, see `data_prep.segmentation`.
        protocol: settings of the benchmark.
        tokenizer: the tokenizer.
        classes: other names for the classes of the dataset, in the same order; None: its own names.
        method: see `eval.segmenter`; None: the method of the model (`choose_method`).
        windows_per_forward: windows that each device encodes at once; 0: depends on crop and
            device.
        limit: evaluate only the first `limit` images.
        title: title of the progress bar.
        stop: called with the number of images just finished; returns whether to stop. All
            processes call it for the same total number of images, so that they can agree on where
            to stop (`cocu_jax.agreement`).
        visit: called with the prediction for every image of this process. Without it, label maps
            stay on the devices.
        partial: stores intermediate counts, and loads those of an interrupted run; None: neither.
        tile_size: short and long side of the tile that a device computes at once; None for the
            default.

    Raises:
        UserError: protocol, classes and dataset do not match.
        Stopped: `stop` returned True.
    """
    classes = _checked_classes(corpus, protocol, classes)
    segmenter = make_segmenter(model, classes, protocol, tokenizer, windows_per_forward, method)
    segmenter = dataclasses.replace(segmenter, tile_size=tile_size)
    index, processes = jax.process_index(), jax.process_count()
    images = min(corpus.num_examples, limit or corpus.num_examples)
    matrices = 2 if hasattr(segmenter.method, "name_by_majority") else 1
    counts = _Counts(matrices, len(classes), images, partial)
    examples = read_images(corpus, protocol, index, processes, limit, np.flatnonzero(counts.done))
    unfinished = {}
    # Every process reports this many images to `stop`, even if its own share is one fewer.
    largest_share, own_share = (len(range(first, images, processes)) for first in (0, index))
    reported = 0
    with progress_bar(title, own_share, "images", done=int(counts.done.sum())) as bar:
        for decoded in segmenter.decode(segmenter.encode(examples)):
            if visit:
                for prediction in assemble(decoded, protocol, unfinished):
                    visit(prediction)
            counts.add(decoded)
            finished = sum(tile.last for tile, _ in decoded.tiles)
            bar.update(finished)
            reported += finished
            if stop and stop(finished):
                done = counts.save()
                raise Stopped(f"{title}: stopped after {done} images; run the same command again")
    if processes > 1 and stop and stop(largest_share - reported):
        done = counts.save()
        raise Stopped(f"{title}: stopped after {done} images; run the same command again")
    counts.collect()
    total, done = _sum_processes(counts.total), int(_sum_processes(counts.done.sum()))
    return SegmentationResult(classes, total[0], total[1] if matrices == 2 else None, done)


class _Counts:
    """Sums the confusion matrices of this process, and saves the sums.

    Args:
        matrices: number of matrices per image.
        classes: number of classes.
        images: number of images that all processes evaluate together.
        partial: stores the sums; None: they are not stored.
    """

    def __init__(self, matrices: int, classes: int, images: int, partial: PartialCounts | None):
        shape = matrices, classes, classes
        self.total, self.done = np.zeros(shape, np.int64), np.zeros(images, bool)
        if partial:
            self.total, self.done = partial.load(shape, images)
        self._partial, self._waiting, self._unfinished = partial, collections.deque(), {}

    def add(self, decoded: DecodedTiles) -> None:
        """Adds matrices, without waiting for the devices to compute them."""
        self._waiting.append(decoded)
        if len(self._waiting) > 2:
            self._collect_one()

    def collect(self) -> None:
        """Waits for the devices, and adds all outstanding matrices."""
        while self._waiting:
            self._collect_one()

    def save(self) -> int:
        """Saves the sums over complete images; returns the number of these images."""
        self.collect()
        if self._partial:
            self._partial.save(self.total, self.done, at_once=True)
        return int(self.done.sum())

    def _collect_one(self) -> None:
        decoded = self._waiting.popleft()
        for (tile, _), matrices in zip(decoded.tiles, np.asarray(decoded.matrices), strict=False):
            image = tile.image.index
            matrices = self._unfinished.pop(image, 0) + matrices
            if tile.last:  # only complete images are added
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
            f"{corpus.directory}: not a segmentation dataset (without {lacks}); "
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
            "give one name per class, in the order of the dataset"
        )
    return tuple(classes or own)


def _sum_processes(counts: np.ndarray) -> np.ndarray:
    """Sum over processes. The two halves are sent separately, because JAX truncates to 32 bits."""
    if jax.process_count() == 1:
        return counts
    counts = np.asarray(counts, np.int64)
    halves = np.stack([counts >> 31, counts & 0x7FFFFFFF]).astype(np.uint32)
    high, low = np.moveaxis(multihost_utils.process_allgather(halves), 1, 0).astype(np.int64)
    return high.sum(0) * 2**31 + low.sum(0)
