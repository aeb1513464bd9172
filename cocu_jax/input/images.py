"""Decodes image files, one at a time; `image_graph` is the same decoder as TensorFlow operations.

All code that needs pixels uses one of the two, and both return the same bytes: JPEGs are decoded
with the accurate DCT, the EXIF orientation is applied, grey and CMYK are converted as in Pillow,
16-bit images keep their high byte, transparent pixels are composited on white, and of an animation
the first frame is taken.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile

from cocu_jax.errors import UserError
from cocu_jax.files import expand_path

MAX_PIXELS = 64_000_000  # 192 MB when decoded, at three bytes per pixel
MAX_BYTES = 200_000_000  # of a file; enough for so many pixels uncompressed

# Pillow reads further formats, some by calling other programs (EPS) or without a bound on memory.
# AVIF and HEIF are read if Pillow or pillow-heif supports them.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "HEIF")
_FORMATS += ("JPEG2000", "PPM")

# The transposition that makes an image with this EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """The bytes are not a complete image of a known format, or exceed a limit; see the message."""


def read_image(path: epath.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """The upright RGB pixels of an image file on disk or in a bucket.

    Raises:
        UserError: there is no such file, or it is not an image that can be read.
    """
    path = epath.Path(expand_path(path))
    try:
        with path.open("rb") as file:
            encoded = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such file; check its name") from None
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read ({reason})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
            return decode_image(encoded)
    except UnreadableImage as error:
        raise UserError(f"{path}: {error}; convert it to a JPEG or PNG file") from None


def decode_image(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The upright RGB pixels of an encoded image.

    Raises:
        UnreadableImage: the bytes are not a complete image of a known format, or exceed a limit.
    """
    with open_image(encoded) as image:
        return np.asarray(upright_rgb(image))


@contextlib.contextmanager
def open_image(encoded: bytes) -> Iterator[Image.Image]:
    """Opens an encoded image with Pillow and checks its header; pixels are not decoded yet.

    Raises:
        UnreadableImage: the image cannot be read; also for any exception of Pillow inside the
            `with` block.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("Pillow is set to accept truncated images")
    if len(encoded) > MAX_BYTES:
        raise UnreadableImage(f"a file of more than {MAX_BYTES:,} bytes")
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            check_size(*image.size)
            if image.format == "PNG" and b"IEND\xaeB`\x82" not in encoded:
                raise UnreadableImage("a truncated image")  # Pillow does not notice this
            yield image
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImage("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # plug-ins raise many types for damaged bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UnreadableImage(f"a damaged image ({reason})") from None


def check_size(width: int, height: int) -> None:
    """Raises UnreadableImage for an empty image and for one with more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise UnreadableImage("an image without pixels")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decodes an opened image to RGB, upright, with transparent pixels on white.

    Raises:
        UnreadableImage: the range of the pixel values is not known. Pillow raises its own errors
            for damaged bytes.
    """
    image.load()
    turn = _TURNS.get(orientation(image))
    pixels = _rgb(image)
    return pixels if turn is None else pixels.transpose(turn)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none or EXIF is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata; the pixels may be intact
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _high_byte(image)
    if image.mode == "F":
        raise UnreadableImage("float pixels, whose range is not known")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _high_byte(image: Image.Image) -> Image.Image:
    """Converts 16-bit grey by its high byte; Pillow's own conversion clips values at 255."""
    values = np.asarray(image)
    if image.mode == "I" and not 0 <= values.min() <= values.max() < 2**16:
        raise UnreadableImage("32-bit pixels, whose range is not known")
    grey = (values >> 8).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
