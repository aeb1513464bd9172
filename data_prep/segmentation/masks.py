"""Mask files -> arrays of classes; images and masks that do not fit each other are named."""

import numpy as np
from etils import epath
from jaxtyping import Int
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.input import images
from data_prep.segmentation.ids import UNKNOWN

_LYING = 5  # the least EXIF orientation that swaps width and height
_LABEL_MODES = ("P", "L", "I;16", "I", "1")


def open_image(path: epath.Path) -> tuple[bytes, Image.Image]:
    """Reads an image file: its bytes, and the image, decoded, within the project's limits.

    Raises:
        UserError: the file is missing, damaged or too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(images.MAX_BYTES + 1)
        with images.open_image(content) as image:
            image.load()
            return content, image
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; unpack the official archive again") from None
    except (images.UnreadableImage, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: not a readable image ({reason}); fetch it again") from None


def read_ids(path: epath.Path) -> Int[np.ndarray, "h w"]:
    """Raw ids of a palette PNG (the indices) or a label PNG (the values)."""
    _, image = open_image(path)
    if image.format != "PNG":
        raise UserError(
            f"{path}: a {image.format} file, but masks are PNGs; others may have changed the ids"
        )
    if image.mode not in _LABEL_MODES:
        raise UserError(
            f"{path}: a {image.mode} picture, but masks are palette or label PNGs; "
            "use the official file, not a coloured copy"
        )
    return np.asarray(image).astype(np.int32)


def read_colour_ids(path: epath.Path) -> Int[np.ndarray, "h w"]:
    """Raw ids of an ImageNet-S mask: red + 256 * green."""
    _, image = open_image(path)
    if image.mode != "RGB":
        raise UserError(
            f"{path}: a {image.mode} picture, but ImageNet-S masks are RGB (id = R + 256 G); "
            "use the official file"
        )
    red, green, _ = np.moveaxis(np.asarray(image).astype(np.int32), -1, 0)
    return red + 256 * green


def to_classes(
    raw: Int[np.ndarray, "h w"], table: Int[np.ndarray, "n"], name: str
) -> Int[np.ndarray, "h w"]:
    """Looks raw ids up.

    Args:
        raw: raw ids of a mask.
        table: raw id -> class.
        name: of the mask, for messages.

    Raises:
        UserError: the mask holds an id that it cannot hold.
    """
    known = (raw >= 0) & (raw < len(table))
    classes = table[np.where(known, raw, 0)]
    known &= classes != UNKNOWN
    if not known.all():
        wrong = raw[~known]
        raise UserError(
            f"{name}: holds id {wrong[0]} ({wrong.size} unexpected pixels); is this a mask of the "
            "dataset that --benchmark names, or do --classes and --ignore name all ids?"
        )
    return classes


def require_same_size(
    image: Image.Image, path: epath.Path, mask: Int[np.ndarray, "h w"], name: str
) -> None:
    """Raises UserError if the upright image and the mask differ in size."""
    height, width = mask.shape
    lies = images.orientation(image) >= _LYING
    size = image.size[::-1] if lies else image.size
    if size != (width, height):
        turned = " once it is turned as its EXIF data says" if lies else ""
        raise UserError(
            f"{path}: {size[0]} x {size[1]} pixels{turned}, but its mask {name} has "
            f"{width} x {height}; fetch both again"
        )
