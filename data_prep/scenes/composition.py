"""Composes a scene: backgrounds, a horizon, things on top, and the exact ground truth."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data_prep.scenes.artwork import drawing_levels, rasterise
from data_prep.scenes.settings import ScenesConfig
from data_prep.scenes.stuff import draw_stuff, smooth_noise

# A scene is drawn anew unless this much is visible of every thing (a share of the thing) and of
# every background (a share of the image).
_LEAST_OF_THING = 0.5
_LEAST_OF_STUFF = 0.04
_SMALLER_IN_PAIRS = 0.8  # so that two things find room beside each other
_UPPER_STUFF = ("sky", "brick wall")  # these stand above other backgrounds


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where and how one thing is drawn. Lengths are shares of the image side."""

    thing: str
    centre: tuple[float, float]  # x, y
    size: float  # long side of the drawing
    degrees: float  # counter-clockwise rotation
    mirrored: bool
    gain: tuple[float, float, float]  # colour jitter of red, green and blue


@dataclasses.dataclass(frozen=True)
class Scene:
    """One finished scene.

    Attributes:
        image: RGB pixels.
        labels: class of every pixel, a position in `ScenesConfig.classes`.
        things, stuff: what the scene shows, back to front.
        placements: how the things were drawn, same order as `things`.
    """

    image: UInt8[np.ndarray, "size size 3"]
    labels: UInt8[np.ndarray, "size size"]
    things: tuple[str, ...]
    stuff: tuple[str, ...]
    placements: tuple[Placement, ...]


def compose_scene(settings: ScenesConfig, rng: np.random.Generator) -> Scene:
    """Draws a random scene in which every concept is visible.

    Things are blended by their anti-aliased coverage; a pixel belongs to the thing that covers more
    than half of it, the one in front first. The horizon is treated the same way.
    """
    things = _choose(rng, settings.things, settings.two_things)
    stuff = _choose(rng, settings.stuff, settings.two_stuff)
    stuff = tuple(sorted(stuff, key=lambda name: name not in _UPPER_STUFF))
    while True:
        if (scene := _draw(settings, rng, things, stuff)) is not None:
            return scene


def cover(placement: Placement, settings: ScenesConfig) -> Float[np.ndarray, "size size 4"]:
    """The thing alone on a transparent image: RGB 0..255 and coverage 0..1."""
    size = settings.image_size
    least, largest = (share * size for share in settings.thing_size)
    levels = drawing_levels(_SMALLER_IN_PAIRS * least, largest)
    pixels = placement.size * size
    level = min((level for level in levels if level >= pixels), default=levels[-1])
    drawing = rasterise(placement.thing, level)
    angle, shrink = math.radians(placement.degrees), level / pixels
    cos, sin = math.cos(angle) * shrink, math.sin(angle) * shrink
    flip = -1 if placement.mirrored else 1
    x, y = (share * size for share in placement.centre)
    inverse = (  # Pillow wants the map from the image to the drawing
        flip * cos, -flip * sin, drawing.width / 2 - flip * (cos * x - sin * y),
        sin, cos, drawing.height / 2 - (sin * x + cos * y),
    )  # fmt: skip
    placed = drawing.transform(
        (size, size), Image.Transform.AFFINE, inverse, resample=Image.Resampling.BICUBIC
    )
    scale = np.float32((*placement.gain, 1 / 255))
    return np.asarray(placed) * scale


def _choose(rng: np.random.Generator, names: tuple[str, ...], two: float) -> tuple[str, ...]:
    count = 2 if rng.random() < two else 1
    return tuple(names[i] for i in rng.choice(len(names), size=count, replace=False))


def _draw(
    settings: ScenesConfig,
    rng: np.random.Generator,
    things: tuple[str, ...],
    stuff: tuple[str, ...],
) -> Scene | None:
    """One try; None if it hides a concept."""
    size, classes = settings.image_size, settings.classes
    image = draw_stuff(stuff[0], rng, size)
    labels = np.full((size, size), classes.index(stuff[0]), np.uint8)
    wanted = dict.fromkeys(stuff, _LEAST_OF_STUFF * labels.size)  # pixels that must be visible
    placements = _place(settings, rng, things)
    layers = [(placement.thing, cover(placement, settings)) for placement in placements]
    if len(stuff) == 2:
        below = np.dstack([draw_stuff(stuff[1], rng, size), _below_horizon(rng, size)])
        layers.insert(0, (stuff[1], below))
    for name, layer in layers:
        colour, alpha = layer[..., :3], layer[..., 3]
        image = image + alpha[..., None] * (colour - image)
        labels[alpha > 0.5] = classes.index(name)
        wanted.setdefault(name, max(1, _LEAST_OF_THING * np.count_nonzero(alpha > 0.5)))
    if any(np.count_nonzero(labels == classes.index(name)) < wanted[name] for name in wanted):
        return None
    return Scene(
        image=np.clip(image + 0.5, 0, 255).astype(np.uint8),
        labels=labels,
        things=things,
        stuff=stuff,
        placements=placements,
    )


def _below_horizon(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Coverage of the part below a tilted, slightly wavy line."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    line = rng.uniform(0.36, 0.64) + rng.uniform(-0.12, 0.12) * (centres - 0.5)
    line = line + 0.03 * smooth_noise(rng, size, 2, 4)[0]
    return np.clip((centres[:, None] - line) * size + 0.5, 0, 1)


def _place(
    settings: ScenesConfig, rng: np.random.Generator, things: tuple[str, ...]
) -> tuple[Placement, ...]:
    """Places things at random; two of them may overlap, but not hide each other."""
    if len(things) == 1:
        return (_place_one(settings, rng, things[0]),)
    while True:
        first, second = placements = tuple(
            _place_one(settings, rng, thing, _SMALLER_IN_PAIRS) for thing in things
        )
        if math.dist(first.centre, second.centre) > 0.38 * (first.size + second.size):
            return placements


def _place_one(
    settings: ScenesConfig, rng: np.random.Generator, thing: str, shrink: float = 1.0
) -> Placement:
    size = shrink * rng.uniform(*settings.thing_size)
    edge = 0.42 * size  # a little of a thing may leave the image
    gain = rng.uniform(0.85, 1.12) * rng.uniform(0.93, 1.07, size=3)
    return Placement(
        thing=thing,
        centre=(rng.uniform(edge, 1 - edge), rng.uniform(edge, 1 - edge)),
        size=size,
        degrees=rng.uniform(-20, 20),
        mirrored=bool(rng.random() < 0.5),
        gain=tuple(gain),
    )
