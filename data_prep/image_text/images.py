"""Images from the web, as JPEG files that every decoder opens the same way."""

import dataclasses
import io
import warnings
from typing import Literal

from PIL import Image

from cocu_jax.input.images import open_image, orientation, upright_rgb

Resize = Literal["none", "pad", "resize"]

_QUALITY = 95


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
        UnreadableImage: the bytes are damaged, cut off, no image, or past a limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata
        with open_image(encoded) as image:
            as_stored = (
                image.format == "JPEG" and image.mode in ("RGB", "L") and orientation(image) == 1
            )
            if recipe.resize != "none":
                # A JPEG decodes at a half, a quarter … of its size, low-passed, for less.
                image.draft("RGB", _final_size(image.size, recipe))
            elif as_stored:
                image.draft(None, (1, 1))  # all of its bytes are read all the same
                image.load()
                return encoded
            pixels = upright_rgb(image)
            if recipe.resize != "none":
                pixels = _square(pixels, recipe)
            file = io.BytesIO()
            pixels.save(file, "JPEG", quality=_QUALITY)
            return file.getvalue()


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
