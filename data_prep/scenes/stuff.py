"""Backgrounds of the demo corpus: procedural textures, drawn anew for every scene.

Coordinates run from 0 to 1 over the image, so a texture looks the same at every resolution.
"""

import types

import numpy as np
from jaxtyping import Float
from PIL import Image

Texture = Float[np.ndarray, "size size 3"]
Field = Float[np.ndarray, "size size"]


def draw_stuff(name: str, rng: np.random.Generator, size: int) -> Texture:
    """One background that covers the image.

    Args:
        name: a key of `TEXTURES`.
        rng: decides hue, pattern and grain.
        size: height and width in pixels.

    Returns:
        RGB values, roughly 0..255, not clipped.
    """
    tint = rng.uniform(0.93, 1.07) * rng.uniform(0.96, 1.04, size=3)
    return TEXTURES[name](rng, size) * tint.astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> Field:
    """Random values of about -1..1 on a coarse grid, interpolated to the image."""
    grid = Image.fromarray(rng.uniform(-1, 1, size=(rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _coordinates(size: int) -> tuple[Field, Field]:
    """(y, x) of the pixel centres."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.meshgrid(centres, centres, indexing="ij")


def _blend(first: tuple[int, ...], second: tuple[int, ...], share: Field) -> Texture:
    """`first` where `share` is 0, `second` where it is 1."""
    first, second = np.float32(first), np.float32(second)
    return first + np.clip(share, 0, 1)[..., None] * (second - first)


def _sky(rng: np.random.Generator, size: int) -> Texture:
    y, _ = _coordinates(size)
    air = _blend((84, 158, 238), (188, 224, 250), y * rng.uniform(0.8, 1.3))
    cover = smooth_noise(rng, size, 6, 4) + 0.5 * smooth_noise(rng, size, 12, 8)
    clouds = np.clip((cover - rng.uniform(0.3, 0.8)) * 3, 0, 0.95)[..., None]
    return air + clouds * (np.float32((252, 253, 255)) - air)


def _grass(rng: np.random.Generator, size: int) -> Texture:
    blades = smooth_noise(rng, size, 14, 48) + 0.7 * smooth_noise(rng, size, 24, 64)
    patches = smooth_noise(rng, size, 4, 4)
    return _blend((48, 120, 36), (128, 192, 74), 0.5 + 0.3 * blades + 0.2 * patches)


def _sand(rng: np.random.Generator, size: int) -> Texture:
    y, x = _coordinates(size)
    slope, phase = rng.uniform(-0.4, 0.4), rng.uniform()
    bend = 0.35 * smooth_noise(rng, size, 4, 3)
    ripples = np.sin(2 * np.pi * (rng.uniform(5, 8) * (y + slope * x) + bend + phase))
    grain = rng.standard_normal((size, size), dtype=np.float32)
    return _blend((206, 166, 104), (240, 210, 150), 0.5 + 0.3 * ripples + 0.18 * grain)


def _water(rng: np.random.Generator, size: int) -> Texture:
    y, _ = _coordinates(size)
    bend = 0.7 * smooth_noise(rng, size, 5, 5)
    waves = np.sin(2 * np.pi * (rng.uniform(6, 9) * y + bend + rng.uniform()))
    deep = _blend((14, 70, 138), (36, 124, 178), 0.5 + 0.5 * waves)
    crests = np.clip((waves + 0.5 * smooth_noise(rng, size, 10, 8) - 1.0) * 3, 0, 0.8)[..., None]
    return deep + crests * (np.float32((206, 236, 246)) - deep)


def _snow(rng: np.random.Generator, size: int) -> Texture:
    drifts = smooth_noise(rng, size, 5, 3) + 0.4 * smooth_noise(rng, size, 10, 6)
    sparkle = 14 * (rng.random((size, size), dtype=np.float32) > 0.96)
    return _blend((244, 248, 253), (200, 214, 236), 0.4 + 0.5 * drifts) + sparkle[..., None]


def _brick_wall(rng: np.random.Generator, size: int) -> Texture:
    y, x = _coordinates(size)
    courses = rng.uniform(7, 9)
    v = y * courses + rng.uniform()
    course = np.floor(v).astype(int)
    u = x * courses / 2.2 + 0.5 * (course % 2) + rng.uniform()
    shade = rng.uniform(0, 1, size=(16, 16)).astype(np.float32)[
        course % 16, np.floor(u).astype(int) % 16
    ]
    bricks = _blend((146, 58, 44), (190, 92, 66), shade + 0.15 * smooth_noise(rng, size, 32, 32))
    mortar = np.maximum(v % 1 < 0.16, u % 1 < 0.07)[..., None]
    return np.where(mortar, np.float32((208, 198, 186)), bricks)


def _road(rng: np.random.Generator, size: int) -> Texture:
    y, x = _coordinates(size)
    grain = rng.standard_normal((size, size), dtype=np.float32)
    asphalt = _blend(
        (74, 74, 80), (118, 118, 124), 0.5 + 0.2 * grain + 0.2 * smooth_noise(rng, size, 4, 4)
    )
    lane = (y * 2.2 + rng.uniform()) % 1 < 0.09
    dash = (x * rng.uniform(2, 3) + rng.uniform()) % 1 < 0.6
    return np.where((lane & dash)[..., None], np.float32((244, 240, 226)), asphalt)


def _wooden_floor(rng: np.random.Generator, size: int) -> Texture:
    y, x = _coordinates(size)
    u = x * rng.uniform(4, 6) + rng.uniform()
    board = np.floor(u).astype(int)
    shade = rng.uniform(0, 0.6, size=16).astype(np.float32)[board % 16]
    grain = np.sin(2 * np.pi * (2 * (u % 1) + 1.2 * smooth_noise(rng, size, 3, 12)))
    boards = _blend((116, 72, 40), (190, 134, 82), shade + 0.2 + 0.16 * grain)
    return np.where((u % 1 < 0.08)[..., None], np.float32((66, 40, 24)), boards)


TEXTURES = types.MappingProxyType({
    "sky": _sky,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "snow": _snow,
    "brick wall": _brick_wall,
    "road": _road,
    "wooden floor": _wooden_floor,
})  # fmt: skip
