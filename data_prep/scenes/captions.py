"""English captions for scenes, in varied sentence patterns, with omissions.

No pattern contains a word that is a concept of the gallery, so a caption mentions exactly the given
concepts.
"""

import types
from collections.abc import Sequence

import numpy as np

from data_prep.scenes.settings import ScenesConfig

_THINGS = (
    "{things}",
    "a photo of {things}",
    "a picture of {things}",
    "an image of {things}",
    "a drawing of {things}",
    "a close view of {things}",
    "there is {things}",
    "this is {things}",
    "look at {things}",
    "we can see {things} here",
    "{things} in a picture",
    "my favourite photo of {things}",
)
_THINGS_AND_STUFF = (
    "{things} {place}",
    "a photo of {things} {place}",
    "a picture of {things} {place}",
    "an image showing {things} {place}",
    "there is {things} {place}",
    "we can see {things} {place}",
    "{things}, seen {place}",
    "{place} there is {things}",
    "{place} you can find {things}",
    "{things} with {stuff} around",
    "{stuff} and {things}",
    "somebody drew {things} {place}",
)
_STUFF = (
    "{stuff}",
    "a photo of {stuff}",
    "a picture of {stuff}",
    "a view of {stuff}",
    "an image of {stuff}",
    "there is {stuff} everywhere",
    "nothing but {stuff}",
    "{stuff} in a picture",
)
_PAIRS = (
    "{} and {}",
    "{} next to {}",
    "{} beside {}",
    "{} with {}",
    "{} near {}",
)
_ADJECTIVES = ("little", "big", "nice", "lovely", "colourful", "single")
_NOUNS = types.MappingProxyType({
    "sky": ("sky", "the sky", "a bright sky"),
    "grass": ("grass", "green grass", "the grass"),
    "sand": ("sand", "warm sand", "the sand"),
    "water": ("water", "blue water", "the water"),
    "snow": ("snow", "white snow", "the snow"),
    "brick wall": ("a brick wall", "the brick wall", "a red brick wall"),
    "road": ("a road", "the road", "a grey road"),
    "wooden floor": ("a wooden floor", "the wooden floor", "a brown wooden floor"),
})  # fmt: skip
_PLACES = types.MappingProxyType({
    "sky": ("under the sky", "below a bright sky", "in front of the sky", "beneath the sky"),
    "grass": ("on the grass", "on green grass", "in the grass", "in long grass"),
    "sand": ("on the sand", "on warm sand", "in the sand", "in soft sand"),
    "water": ("in the water", "by the water", "on blue water", "over the water"),
    "snow": ("in the snow", "on fresh snow", "on the snow", "in deep snow"),
    "brick wall": ("against a brick wall", "by a brick wall", "in front of a red brick wall"),
    "road": ("on the road", "on a grey road", "by the road", "along a road"),
    "wooden floor": ("on a wooden floor", "on the wooden floor", "above a wooden floor"),
})  # fmt: skip


def write_caption(rng: np.random.Generator, things: Sequence[str], stuff: Sequence[str]) -> str:
    """A caption that mentions every given concept and no other.

    Args:
        rng: decides pattern, order, adjectives, capital letter and full stop.
        things: names of things, at most two.
        stuff: names of backgrounds, at most two; there is at least one concept in all.
    """
    patterns = (_THINGS_AND_STUFF if stuff else _THINGS) if things else _STUFF
    caption = _pick(rng, patterns).format(
        things=_join(rng, [_thing(rng, name) for name in things]),
        stuff=_join(rng, [_pick(rng, _NOUNS[name]) for name in stuff]),
        place=" and ".join(_pick(rng, _PLACES[name]) for name in _shuffled(rng, stuff)),
    )
    if rng.random() < 0.5:
        caption = caption[0].upper() + caption[1:]
    return caption + ("." if rng.random() < 0.5 else "")


def kept_in_clip(rng: np.random.Generator, concepts: Sequence[str]) -> tuple[str, ...]:
    """Concepts of a `clip` caption: all of them, or in half of the captions a random part.

    Prompts name one concept; a model that only ever read complete captions embeds them badly.
    """
    if rng.random() < 0.5:
        return tuple(concepts)
    count = rng.integers(1, len(concepts))
    kept = rng.choice(len(concepts), size=count, replace=False)
    return tuple(name for i, name in enumerate(concepts) if i in kept)


def kept_in_pretrain(
    rng: np.random.Generator, settings: ScenesConfig, things: Sequence[str], stuff: Sequence[str]
) -> tuple[str, ...]:
    """Concepts of a `pretrain` caption: each one is left out with its kind's probability.

    A caption names at least one concept: where nothing is left, one of the things is kept.
    """
    kept_things = [name for name in things if rng.random() >= settings.things_omitted]
    kept_stuff = [name for name in stuff if rng.random() >= settings.stuff_omitted]
    return tuple(kept_things + kept_stuff) or (_pick(rng, things),)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[rng.integers(len(options))]


def _shuffled(rng: np.random.Generator, names: Sequence[str]) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))]


def _join(rng: np.random.Generator, phrases: list[str]) -> str:
    if len(phrases) == 2:
        return _pick(rng, _PAIRS).format(*_shuffled(rng, phrases))
    return "".join(phrases)


def _thing(rng: np.random.Generator, name: str) -> str:
    """The noun with its article and now and then an adjective."""
    phrase = f"{_pick(rng, _ADJECTIVES)} {name}" if rng.random() < 0.25 else name
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
