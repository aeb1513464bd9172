"""Label maps and group maps of single images, for pictures and for people."""

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Int, UInt8

from eval.batches import Batch, LabelledImage, batch_images
from eval.segmenter import Painting, Segmenter


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model makes of one image, at its original size.

    Attributes:
        key: of the image.
        image: the image as evaluated (resized by the protocol).
        labels: class of every pixel.
        groups: group of every pixel after all stages. Windows group on their own: each pixel is
            shown as the window with the nearest centre has it, numbered `window * groups + group`.
        first_groups: the same after the first grouping stage, numbered `window * 256 + group`;
            None unless asked for.
    """

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    labels: Int[np.ndarray, "oh ow"]
    groups: Int[np.ndarray, "oh ow"]
    first_groups: Int[np.ndarray, "oh ow"] | None


def predict(
    segmenter: Segmenter, images: Iterable[LabelledImage], with_first_maps: bool = False
) -> Iterator[Prediction]:
    """Segments images; they come back in the order of their shapes, see `batch_images`."""
    for batch in batch_images(iter(images), segmenter.protocol, segmenter.rows):
        painting = segmenter.paint(batch, segmenter.read(batch, with_first_maps))
        yield from unpad(batch, painting)


def unpad(batch: Batch, painting: Painting) -> Iterator[Prediction]:
    """The images of a batch, each at its own size."""
    maps = jax.device_get(painting)
    for row, key in enumerate(batch.keys):
        height, width = batch.sizes[row]
        rows, columns = batch.originals[row]
        own = [None if m is None else m[row, :rows, :columns] for m in maps]
        yield Prediction(key, batch.images[row, :height, :width], *own)
