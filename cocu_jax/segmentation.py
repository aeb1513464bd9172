"""Segments photos with words, from Python.

from cocu_jax.segmentation import Segmenter

segmenter = Segmenter.load("openai/clip-vit-base-patch16", ["dog", "grass", "sky"])
result = segmenter("photo.jpg")
result.labels, result.scores, result.overlay()
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath
from flax import nnx
from jaxtyping import Float, Float16, UInt8, UInt16
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.input.images import check_size, read_image, upright_rgb
from cocu_jax.models.clip import CLIP
from cocu_jax.models.tokenizer import Tokenizer
from eval import segmenter as engine
from eval.checkpoint import load_checkpoint
from eval.class_embeddings import ClassEmbeddings
from eval.groups import GroupMethod
from eval.images import EvaluatedImage, resize_uint8
from eval.painting import CLASSES_PER_BLOCK
from eval.palettes import distinct_colours
from eval.pictures import add_legend, draw_overlay
from eval.prediction import Prediction, predict
from eval.protocol import Protocol
from eval.scores import class_scores

# Weights under the MIT licence; read by `Protocol.dense`, see docs/evaluation.md.
DEFAULT_CHECKPOINT = "openai/clip-vit-base-patch16"
_DRAWN = 960  # long side of pictures
_ROWS = 256  # of a label map that are counted at once
_TILE = 512, 1024  # of a label map that a device paints at once: eight of them fit a small machine

Photo = epath.PathLike | Image.Image | UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """One segmented photo.

    Attributes:
        name: of the photo.
        classes: class names in label order.
        labels: class of every pixel of the photo.
        picture: the photo, scaled down to the size of pictures if it is larger.
        prediction: the model's complete output.
    """

    name: str
    classes: tuple[str, ...]
    labels: UInt16[np.ndarray, "h w"]
    picture: UInt8[np.ndarray, "ph pw 3"]
    prediction: Prediction
    _engine: engine.Segmenter

    @functools.cached_property
    def scores(self) -> Float16[np.ndarray, "c eh ew"]:
        """Scores of every class, at the size of the model's input."""
        return class_scores(self._engine, self.prediction)

    @functools.cached_property
    def shares(self) -> tuple[float, ...]:
        """Share of the pixels of each class, 0..1."""
        counts = np.zeros(len(self.classes), np.int64)
        for row in range(0, len(self.labels), _ROWS):
            part = self.labels[row : row + _ROWS].reshape(-1)
            counts += np.bincount(part, minlength=len(counts))
        return tuple((counts / self.labels.size).tolist())

    @property
    def colours(self) -> UInt8[np.ndarray, "c 3"]:
        """Colours of the classes in pictures."""
        return distinct_colours(len(self.classes))

    def overlay(self) -> Image.Image:
        """The photo with its classes in colour, and a legend."""
        picture = draw_overlay(self.picture, self.labels, self.colours, _DRAWN)
        return add_legend(picture, self.classes, self.colours, self.shares)


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A checkpoint bound to class names; made by `load`.

    Attributes:
        classes: class names in label order; the background class, if there is one, is the first.
        engine: runs the model on the devices.
    """

    classes: tuple[str, ...]
    engine: engine.Segmenter

    @classmethod
    def load(
        cls,
        checkpoint: str = DEFAULT_CHECKPOINT,
        classes: Sequence[str] = (),
        *,
        background: float | None = None,
        templates: str = "",
        crop: int = 0,
        short_side: int = 0,
        dense: str = "",
        with_groups: bool = False,
    ) -> "Segmenter":
        """Opens a checkpoint and embeds the class names.

        Args:
            checkpoint: a training run, a Hugging Face folder or hub id of a GroupViT or a CLIP, or
                an authors' `.pth` file.
            classes: class names.
            background: threshold of an additional background class; None: no such class.
            templates: prompts, see `Protocol`; default: "simple" for a GroupViT, "full" for a CLIP.
            crop: side of a window in pixels; 0: chosen by the model.
            short_side: short side of resized photos; 0: chosen by the model.
            dense: method that turns a CLIP into a segmenter, one of `eval.protocol.DENSE`;
                "": "naclip".
            with_groups: also return the groups of a GroupViT's first stage.

        Raises:
            UserError: there is no such checkpoint, or the classes or settings are invalid.
        """
        classes = _with_background(classes, background)
        if min(crop, short_side) < 0:
            raise UserError(f"crop={crop}, short_side={short_side}: give pixels, or 0")
        model, processing = load_checkpoint(str(checkpoint))
        size, is_clip = model.config.image_size, isinstance(model, CLIP)
        if dense and not is_clip:
            raise UserError(f"{checkpoint}: is a GroupViT; dense={dense!r} is for a CLIP only")
        crop = crop or (448 if size == 224 and not is_clip else size)
        protocol = Protocol(
            crop=crop,
            stride=max(crop // 2, 1),
            resize_long_short=(2048, short_side or (crop * 3 // 2 if is_clip else crop)),
            has_background=background is not None,
            bg_thresh=background,
            templates=templates or ("full" if is_clip else "simple"),
            dense=dense or Protocol.dense,
            mean=processing.mean,
            std=processing.std,
        )
        method = None if is_clip else GroupMethod(protocol, with_first=with_groups)
        bound = engine.make_segmenter(model, classes, protocol, Tokenizer(), method=method)
        return cls(classes, dataclasses.replace(bound, tile=_TILE))

    def with_classes(
        self,
        classes: Sequence[str],
        background: float | None,
        embed: Callable[[str], Float[np.ndarray, "w p"]],
        **changes: Any,
    ) -> "Segmenter":
        """The same model on the same devices, bound to other class names.

        Compiled programs are shared by all thresholds, and by lists of about the same length.

        Args:
            classes: class names.
            background: as in `load`.
            embed: `embed_class`, or a cached version of it.
            changes: other fields of the protocol, such as `dense` or `pamr`.

        Raises:
            UserError: the classes or settings are invalid.
        """
        named = _with_background(classes, background)
        protocol = dataclasses.replace(
            self.engine.protocol,
            has_background=background is not None,
            bg_thresh=background,
            **changes,
        )
        vectors = [embed(name) for name in classes]
        labels = np.arange(len(named) - len(classes), len(named), dtype=np.int32)
        owners = np.repeat(labels, [len(own) for own in vectors])
        texts = ClassEmbeddings(np.concatenate(vectors), owners, np.float32(background or 0))
        # Equal methods share programs; the threshold that counts is that of `texts`.
        any_threshold = dataclasses.replace(protocol, bg_thresh=None if background is None else 0.0)
        bound = dataclasses.replace(
            self.engine,
            texts=engine.replicate(texts.padded(CLASSES_PER_BLOCK), self.engine.mesh),
            method=dataclasses.replace(self.engine.method, protocol=any_threshold),
            protocol=protocol,
            num_classes=len(named),
        )
        return Segmenter(named, bound)

    def embed_class(self, name: str) -> Float[np.ndarray, "w p"]:
        """Unit-norm embeddings of one class, as the method reads them."""
        model = nnx.merge(self.engine.graphdef, self.engine.state)
        protocol = dataclasses.replace(self.engine.protocol, has_background=False, bg_thresh=None)
        method = dataclasses.replace(self.engine.method, protocol=protocol)
        return method.embed(model, (name,), Tokenizer()).vectors

    def __call__(self, photo: Photo) -> Segmentation:
        """Segments one photo.

        Args:
            photo: a path, local or in a bucket, a Pillow image, or RGB pixels (uint8) as an array
                of NumPy or of what NumPy can read.

        Raises:
            UserError: it cannot be read.
        """
        (result,) = self.stream([(_name(photo), photo)])
        return result

    def stream(self, photos: Iterable[tuple[str, Photo]]) -> Iterator[Segmentation]:
        """Segments named photos; landscape and portrait ones are each returned in their order.

        Photos are read as they are needed, so that memory does not grow with their number.
        """
        pictures, numbers = {}, itertools.count()

        def prepare() -> Iterator[EvaluatedImage]:
            for name, photo in photos:  # `enumerate` would keep the photo while it is segmented
                number, pixels = next(numbers), _pixels(photo)
                size, protocol = pixels.shape[:2], self.engine.protocol
                target = tf.constant(protocol.resized(*size))
                resized = resize_uint8(tf.constant(pixels), target).numpy()
                pictures[number] = name, _for_drawing(pixels)
                del pixels, photo
                yield EvaluatedImage(str(number), resized, size)

        for prediction in predict(self.engine, prepare()):
            name, picture = pictures.pop(int(prediction.key))
            yield Segmentation(
                name, self.classes, prediction.labels, picture, prediction, self.engine
            )


def _with_background(classes: Sequence[str], background: float | None) -> tuple[str, ...]:
    """The classes, with background before them where there is a threshold; both are checked."""
    if isinstance(classes, str):
        raise UserError(f"classes={classes!r}: give a list of names, such as [{classes!r}]")
    classes = tuple(classes)
    if not classes:
        raise UserError("no class names to look for (background does not count); give at least one")
    for name in classes:
        if not isinstance(name, str) or not name.strip(" ,"):
            raise UserError(f"{name!r} among the classes is no name; take it out")
        if classes.count(name) > 1:
            raise UserError(f"class {name!r} is there more than once; keep one")
    if background is None:
        return classes
    if isinstance(background, bool) or not 0 <= background <= 1:
        raise UserError(f"background={background}: give a threshold from 0 to 1, or none")
    if "background" in classes:
        raise UserError("a background adds a class of that name; take it out of the classes")
    return ("background", *classes)


def _name(photo: Photo) -> str:
    return str(photo) if isinstance(photo, str | os.PathLike) else ""


def _pixels(photo: Photo) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(photo, str | os.PathLike):
        return read_image(photo)
    if not (isinstance(photo, Image.Image) or hasattr(photo, "__array__")):
        kind = type(photo).__name__
        raise UserError(f"a photo of type {kind}; give a path, a Pillow image, or RGB pixels")
    try:
        if isinstance(photo, Image.Image):
            check_size(*photo.size)
            photo = upright_rgb(photo)
        pixels = np.asarray(photo)
    except Exception as error:  # of Pillow and other libraries: damaged, closed, of odd kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"a photo that cannot be read: {reason}") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(
            f"an image of {pixels.dtype} and shape {pixels.shape}; "
            "give RGB pixels of uint8 and shape (height, width, 3)"
        )
    return pixels


def _for_drawing(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "ph pw 3"]:
    scale = _DRAWN / max(pixels.shape[:2])
    if scale >= 1:
        return pixels.copy()
    size = [max(round(side * scale), 1) for side in pixels.shape[1::-1]]
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    return np.asarray(picture)
