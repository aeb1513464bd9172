"""The one reader of image files, for one file at a time; `image_graph` is the same in tf.data.

Every place that looks at pixels reads them here or there, and both give the same bytes: JPEGs by
the accurate DCT, turned as EXIF says, grey and CMYK as Pillow converts them, the high byte of 16
bits, what is transparent on white, the first frame of animations.
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
from cocu_jax.files import place

MAX_PIXELS = 64_000_000  # decoded, three bytes each: 192 MB
MAX_BYTES = 200_000_000  # of the file: as many pixels uncompressed

# Pillow opens more, some of it by calling other programs (EPS) or with no bound on memory. AVIF and
# HEIF are read where Pillow, or pillow-heif, has them.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "HEIF")
_FORMATS += ("JPEG2000", "PPM")

# What undoes each EXIF orientation.
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
    """The bytes are no whole image of a known format, or one past a limit. The message says why."""


def read_image(path: epath.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """The upright RGB pixels of an image file on disk or in a bucket.

    Raises:
        UserError: there is no such file, or it is no image that can be read.
    """
    path = epath.Path(place(path))
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
            warnings.simplefilter("ignore")  # of Pillow, about odd metadata
            return decode_image(encoded)
    except UnreadableImage as error:
        raise UserError(f"{path}: {error}; convert it to a JPEG or PNG file") from None


def decode_image(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The upright RGB pixels of an encoded image.

    Raises:
        UnreadableImage: see there.
    """
    with open_image(encoded) as image:
        return np.asarray(upright_rgb(image))


@contextlib.contextmanager
def open_image(encoded: bytes) -> Iterator[Image.Image]:
    """Opens an encoded image with Pillow; its header keeps the limits, its pixels are not decoded.

    Raises:
        UnreadableImage: see there; also for whatever Pillow raises inside the `with` block.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("Pillow is set to pass over truncated images")
    if len(encoded) > MAX_BYTES:
        raise UnreadableImage(f"a file of more than {MAX_BYTES:,} bytes")
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            check_size(*image.size)
            if image.format == "PNG" and b"IEND\xaeB`\x82" not in encoded:
                raise UnreadableImage("a truncated image")  # Pillow reads on without the end
            yield image
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImage("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # plug-ins raise anything on damaged bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UnreadableImage(f"a damaged image ({reason})") from None


def check_size(width: int, height: int) -> None:
    """Raises UnreadableImage for an empty image, and for one of more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise UnreadableImage("an image without pixels")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decodes an opened image: RGB, turned as EXIF says, what is transparent on white.

    Raises:
        UnreadableImage: pixels that have no known range. Pillow's own errors for damaged bytes.
    """
    image.load()
    turn = _TURNS.get(orientation(image))
    pixels = _rgb(image)
    return pixels if turn is None else pixels.transpose(turn)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or EXIF is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of damaged metadata; the pixels may be whole
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
    """Grey of 16 bits; Pillow's own conversion clips it at 255."""
    values = np.asarray(image)
    if image.mode == "I" and not 0 <= values.min() <= values.max() < 2**16:
        raise UnreadableImage("32-bit pixels, whose range is not known")
    grey = (values >> 8).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
