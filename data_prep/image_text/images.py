"""Images from the web, as JPEG files that every decoder opens the same way."""

import dataclasses
import io
import warnings
from typing import Literal

from PIL import Image, ImageFile, ImageOps

Resize = Literal["none", "pad", "resize"]

_ORIENTATION = 0x0112  # EXIF tag
_QUALITY = 95
# Whatever Pillow's plug-ins raise on damaged bytes.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError)
_DAMAGED += (OverflowError, ArithmeticError, AttributeError, Image.DecompressionBombError)


class UndecodableImage(Exception):
    """The bytes are no whole image."""


@dataclasses.dataclass(frozen=True)
class ImageRecipe:
    """How images are stored.

    Attributes:
        resize: `none` keeps the size, `resize` makes a square whatever the aspect, `pad` keeps the
            aspect and fills the square up with white.
        size: side of the square in pixels.
    """

    resize: Resize = "none"
    size: int = 256


def prepare_image(encoded: bytes, recipe: ImageRecipe) -> bytes:
    """A JPEG file of 8-bit RGB or grey pixels, upright.

    Original bytes are kept if they are that already and no resizing is asked for.

    Raises:
        UndecodableImage: the bytes are damaged, cut off, or no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata and large images
        try:
            return _prepare(encoded, recipe)
        except _DAMAGED as error:
            raise UndecodableImage(str(error)) from None


def _prepare(encoded: bytes, recipe: ImageRecipe) -> bytes:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("Pillow is set to pass over truncated images")
    with Image.open(io.BytesIO(encoded)) as image:
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        as_stored = image.format == "JPEG" and image.mode in ("RGB", "L") and upright
        if recipe.resize != "none":
            # A JPEG decodes at a half, a quarter … of its size, low-passed, for less.
            image.draft("RGB", _final_size(image.size, recipe))
        elif as_stored:
            image.draft(None, (1, 1))  # all of its bytes are read all the same
        image.load()
        if recipe.resize == "none" and as_stored:
            return encoded
        pixels = _on_white(image if upright else ImageOps.exif_transpose(image))
    if recipe.resize != "none":
        pixels = _square(pixels, recipe)
    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _on_white(image: Image.Image) -> Image.Image:
    """RGB pixels; what is transparent becomes white."""
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _final_size(size: tuple[int, int], recipe: ImageRecipe) -> tuple[int, int]:
    """Width and height of the picture inside the square."""
    if recipe.resize == "resize":
        return recipe.size, recipe.size
    width, height = (max(1, round(length * recipe.size / max(size))) for length in size)
    return width, height


def _square(image: Image.Image, recipe: ImageRecipe) -> Image.Image:
    width, height = _final_size(image.size, recipe)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if width == height == recipe.size:
        return image
    square = Image.new("RGB", (recipe.size, recipe.size), "white")
    square.paste(image, ((recipe.size - width) // 2, (recipe.size - height) // 2))
    return square
