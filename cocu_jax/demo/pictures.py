"""Pictures of the report: label maps in colour, and images as text that a page can hold."""

import base64
import colorsys
import io
import types
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

# Backgrounds wear a muted version of their own colour.
_NATURAL = types.MappingProxyType({
    "sky": (150, 196, 236),
    "grass": (122, 158, 96),
    "sand": (222, 200, 152),
    "water": (52, 92, 140),
    "snow": (226, 230, 238),
    "brick wall": (150, 88, 74),
    "road": (120, 122, 128),
    "wooden floor": (134, 104, 76),
})  # fmt: skip
_GOLDEN_TURN = 0.381966  # steps of this share of the colour circle keep away from each other


def class_colours(classes: Sequence[str], stuff: Collection[str]) -> UInt8[np.ndarray, "c 3"]:
    """One colour per class: muted natural ones for backgrounds, strong ones for things."""
    colours, count = [], len(classes)
    for index, name in enumerate(classes):
        if name in stuff:
            colours.append(_NATURAL.get(name) or _rgb(index / count, 0.3, (0.9, 0.6)[index % 2]))
        else:
            saturation, value = ((0.85, 1.0), (1.0, 0.7), (0.6, 0.95))[index % 3]
            colours.append(_rgb(index / (count - len(stuff)), saturation, value))
    return np.array(colours, np.uint8)


def group_colours(groups: int) -> UInt8[np.ndarray, "g 3"]:
    """One colour per group of the model."""
    return np.array(
        [_rgb(0.6 + i * _GOLDEN_TURN, 0.55, (0.95, 0.75)[i % 2]) for i in range(groups)], np.uint8
    )


def map_uri(labels: Int[np.ndarray, "h w"], colours: UInt8[np.ndarray, "c 3"]) -> str:
    """A label map as a coloured image for an `src` attribute."""
    buffer = io.BytesIO()
    Image.fromarray(colours[labels]).quantize(len(colours)).save(
        buffer, format="PNG", optimize=True
    )
    return png_uri(buffer.getvalue())


def image_uri(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Pixels as an image for an `src` attribute."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return png_uri(buffer.getvalue())


def png_uri(png: bytes) -> str:
    """PNG bytes as an image for an `src` attribute."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def css_colour(colour: UInt8[np.ndarray, "3"]) -> str:
    """A colour as style sheets write it."""
    return "#" + "".join(f"{channel:02x}" for channel in colour.tolist())


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, ...]:
    return tuple(
        round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value)
    )
