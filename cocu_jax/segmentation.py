"""Segments photos into any classes, from Python.

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
from eval.decoding import CLASSES_PER_BLOCK
from eval.groups import GroupMethod
from eval.images import EvaluatedImage, resize_uint8
from eval.palettes import distinct_colours
from eval.pictures import add_legend, draw_overlay
from eval.prediction import Prediction, predict
from eval.protocol import Protocol
from eval.scores import class_scores

# Its weights have the MIT licence. `Protocol.dense` turns it into a segmenter.
DEFAULT_CHECKPOINT = "openai/clip-vit-base-patch16"
_LONG_SIDE = 960  # of pictures
_ROWS = 256  # rows of a label map whose pixels are counted at once
_TILE_SIZE = 512, 1024  # small enough for eight devices to share the memory of a small machine

Photo = epath.PathLike | Image.Image | UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """One segmented photo.

    Attributes:
        name: name of the photo.
        classes: class names in label order.
        labels: class of every pixel of the photo.
        picture: the photo, scaled down if it is larger than the pictures to be drawn.
        prediction: the complete prediction, including groups.
    """

    name: str
    classes: tuple[str, ...]
    labels: UInt16[np.ndarray, "h w"]
    picture: UInt8[np.ndarray, "ph pw 3"]
    prediction: Prediction
    _engine: engine.Segmenter

    @functools.cached_property
    def scores(self) -> Float16[np.ndarray, "c eh ew"]:
        """Scores of every class, at the size of the model's input (`eval.scores`)."""
        return class_scores(self._engine, self.prediction)

    @functools.cached_property
    def shares(self) -> tuple[float, ...]:
        """Share of the pixels that each class has, 0..1."""
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
        """Draws the classes in colour over the photo, with a legend."""
        picture = draw_overlay(self.picture, self.labels, self.colours, _LONG_SIDE)
        return add_legend(picture, self.classes, self.colours, self.shares)


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A checkpoint bound to class names; create one with `load`.

    Attributes:
        classes: class names in label order; a background class comes first.
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
                an authors' `.pth` or `.pt` file.
            classes: class names.
            background: threshold of an additional background class; None: no such class.
            templates: prompt templates, see `Protocol`; "": "simple" for a GroupViT and "full" for
                a CLIP.
            crop: side of the sliding window in pixels; 0: depends on the model.
            short_side: short side of resized photos in pixels; 0: depends on the model.
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
        return cls(classes, dataclasses.replace(bound, tile_size=_TILE_SIZE))

    def with_classes(
        self,
        classes: Sequence[str],
        background: float | None,
        embed: Callable[[str], Float[np.ndarray, "w p"]],
        **changes: Any,
    ) -> "Segmenter":
        """Binds the same model, on the same devices, to other class names.

        Other thresholds use the same compiled programs, and so do lists of classes of about the
        same length.

        Args:
            classes: class names.
            background: as in `load`.
            embed: `embed_class`, or a cached version of it.
            changes: changed fields of the protocol, such as `dense` or `pamr`.

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
        class_ids = np.repeat(labels, [len(own) for own in vectors])
        embeddings = ClassEmbeddings(
            np.concatenate(vectors), class_ids, np.float32(background or 0)
        )
        # Equal methods share programs, and programs take the threshold from `embeddings`.
        any_threshold = dataclasses.replace(protocol, bg_thresh=None if background is None else 0.0)
        bound = dataclasses.replace(
            self.engine,
            embeddings=engine.replicate(embeddings.padded(CLASSES_PER_BLOCK), self.engine.mesh),
            method=dataclasses.replace(self.engine.method, protocol=any_threshold),
            protocol=protocol,
            num_classes=len(named),
        )
        return Segmenter(named, bound)

    def embed_class(self, name: str) -> Float[np.ndarray, "w p"]:
        """Unit-norm embeddings of one class, for the method of the model."""
        model = nnx.merge(self.engine.graphdef, self.engine.state)
        protocol = dataclasses.replace(self.engine.protocol, has_background=False, bg_thresh=None)
        method = dataclasses.replace(self.engine.method, protocol=protocol)
        return method.embed(model, (name,), Tokenizer()).vectors

    def __call__(self, photo: Photo) -> Segmentation:
        """Segments one photo.

        Args:
            photo: a path (local or in a bucket), a Pillow image, or RGB pixels (uint8) as an array
                of NumPy or of a library whose arrays NumPy can convert.

        Raises:
            UserError: the photo cannot be read.
        """
        (result,) = self.stream([(_name(photo), photo)])
        return result

    def stream(self, photos: Iterable[tuple[str, Photo]]) -> Iterator[Segmentation]:
        """Segments named photos. Landscape and portrait photos are each returned in their order.

        Photos are read one after the other, so memory does not grow with their number.

        Args:
            photos: names and photos.

        Raises:
            UserError: a photo cannot be read.
        """
        pictures, numbers = {}, itertools.count()

        def prepare() -> Iterator[EvaluatedImage]:
            for name, photo in photos:  # `enumerate` would hold a reference to the photo
                number, pixels = next(numbers), _pixels(photo)
                size, protocol = pixels.shape[:2], self.engine.protocol
                target = tf.constant(protocol.input_size(*size))
                resized = resize_uint8(tf.constant(pixels), target).numpy()
                pictures[number] = name, _scale_down(pixels)
                del pixels, photo
                yield EvaluatedImage(str(number), resized, size)

        for prediction in predict(self.engine, prepare()):
            name, picture = pictures.pop(int(prediction.key))
            yield Segmentation(
                name, self.classes, prediction.labels, picture, prediction, self.engine
            )


def _with_background(classes: Sequence[str], background: float | None) -> tuple[str, ...]:
    """Checks classes and threshold, and puts a background class first if there is a threshold."""
    if isinstance(classes, str):
        raise UserError(f"classes={classes!r}: give a list of names, such as [{classes!r}]")
    classes = tuple(classes)
    if not classes:
        raise UserError("there are no class names (background does not count); give at least one")
    for name in classes:
        if not isinstance(name, str) or not name.strip(" ,"):
            raise UserError(f"{name!r} among the classes is not a name; take it out")
        if classes.count(name) > 1:
            raise UserError(f"class {name!r} is listed more than once; keep one")
    if background is None:
        return classes
    if isinstance(background, bool) or not 0 <= background <= 1:
        raise UserError(f"background={background}: give a threshold from 0 to 1, or none")
    if "background" in classes:
        raise UserError("the class 'background' is added automatically; take it out of the classes")
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
    except Exception as error:  # Pillow and other libraries raise different errors
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"a photo that cannot be read: {reason}") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(
            f"an array of {pixels.dtype} and shape {pixels.shape}; "
            "give RGB pixels as uint8 of shape (height, width, 3)"
        )
    return pixels


def _scale_down(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "ph pw 3"]:
    scale = _LONG_SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels.copy()
    size = [max(round(side * scale), 1) for side in pixels.shape[1::-1]]
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    return np.asarray(picture)
