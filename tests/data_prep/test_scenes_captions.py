"""Captions of scenes: they mention what they should, and leave out what is declared."""

import re

import numpy as np
import pytest

from data_prep.scenes.artwork import ARTWORK
from data_prep.scenes.captions import kept_in_clip, kept_in_pretrain, write_caption
from data_prep.scenes.gallery import scenes_gallery
from data_prep.scenes.settings import ScenesConfig
from data_prep.scenes.stuff import TEXTURES


def words_found(caption: str, concepts) -> set[str]:
    """Concepts that occur in the caption as whole words."""
    return {c for c in concepts if re.search(rf"\b{re.escape(c)}\b", caption.lower())}


def test_a_caption_mentions_exactly_its_concepts_whatever_the_gallery():
    settings = ScenesConfig(things=tuple(ARTWORK), stuff=tuple(TEXTURES))
    concepts = scenes_gallery(settings).concepts
    rng = np.random.default_rng(0)
    captions = set()
    for _ in range(1500):
        things = list(rng.choice(settings.things, size=rng.integers(0, 3), replace=False))
        stuff = list(rng.choice(settings.stuff, size=rng.integers(not things, 3), replace=False))
        caption = write_caption(rng, things, stuff)
        assert words_found(caption, concepts) == {*things, *stuff}, caption
        assert re.search(r"\ba [aeiou]|\ban [^aeiou]|  |[{}]", caption) is None, caption
        captions.add(caption)
    assert len(captions) > 1200
    assert 0.4 < np.mean([caption.endswith(".") for caption in captions]) < 0.6


def test_clip_captions_are_half_complete_and_never_empty():
    rng = np.random.default_rng(0)
    concepts = ("car", "tree", "sky")
    kept = [kept_in_clip(rng, concepts) for _ in range(4000)]
    lengths = np.bincount([len(names) for names in kept], minlength=4) / 4000
    assert np.allclose(lengths, [0, 0.25, 0.25, 0.5], atol=0.04)  # > 4 standard deviations
    assert all(set(names) <= set(concepts) for names in kept)


@pytest.mark.parametrize(("things_omitted", "stuff_omitted"), [(0.1, 0.95), (0.5, 0.8)])
def test_pretrain_captions_omit_as_declared(things_omitted, stuff_omitted):
    settings = ScenesConfig(things_omitted=things_omitted, stuff_omitted=stuff_omitted)
    rng = np.random.default_rng(0)
    draws = 6000
    kept = [kept_in_pretrain(rng, settings, ("car", "pig"), ("sky",)) for _ in range(draws)]
    share = {name: np.mean([name in names for names in kept]) for name in ("car", "pig", "sky")}
    # A caption that would be empty keeps one of its two things.
    rescued = things_omitted**2 * stuff_omitted / 2
    assert abs(share["sky"] - (1 - stuff_omitted)) < 0.02
    assert abs(share["car"] - (1 - things_omitted + rescued)) < 0.03
    assert abs(share["pig"] - (1 - things_omitted + rescued)) < 0.03
    assert min(map(len, kept)) >= 1


def test_class_names_are_the_first_concepts_of_the_gallery():
    settings = ScenesConfig()
    concepts = scenes_gallery(settings).concepts
    assert concepts[: len(settings.classes)] == settings.classes
    assert len(concepts) > 10 * len(settings.classes)
