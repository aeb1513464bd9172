"""Prompts joined from pieces have the tokens of the whole prompt."""

import pytest

from cocu_jax.errors import UserError
from cocu_jax.models.templates import (
    IMAGENET_TEMPLATES,
    SIMPLE_TEMPLATE,
    SUBSET_TEMPLATES,
    concept_pieces,
    template_pieces,
)
from cocu_jax.models.tokenizer import Tokenizer
from data_prep.gallery.gallery import Gallery

HARD_CONCEPTS = [
    "new york's",
    "boeing 747",
    "3d",
    "t-shirt",
    "rock 'n' roll",
    "tom & jerry",
    "o'neill",
    "'s",
    "(red) apple",
    "a/c unit",
    "café",
    "犬",
    "😀 face",
    "x²",
    "the 1920s",
    "<|endoftext|>x",
    "&amp",
    "Big Ben",
    "naïve",
    "it's 5",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def test_pieces_join_to_the_whole_prompt_for_80_templates_and_2000_concepts(tokenizer):
    concepts = [*HARD_CONCEPTS, *Gallery.load().concepts[::2]][:2001]
    concepts.remove("&amp")  # ends in punctuation once it is unescaped, see below
    assert len(concepts) == 2000
    prefixes, suffixes = template_pieces(tokenizer)
    pieces = concept_pieces(tokenizer, concepts)
    for template, prefix, suffix in zip(IMAGENET_TEMPLATES, prefixes, suffixes, strict=True):
        for concept, piece in zip(concepts, pieces, strict=True):
            assert prefix + piece + suffix == tokenizer.encode(template.format(concept)), concept


@pytest.mark.parametrize(
    ("concept", "said"),
    [
        ("t.v.", "t.v"),
        ("c++", "c"),
        ("wow!", "wow"),
        ("dogs'", "dogs"),
        ("'hat'", "'hat"),
        ("a &", "a"),
    ],
)
def test_punctuation_at_the_end_of_a_concept_is_left_out(tokenizer, concept, said):
    prefixes, suffixes = template_pieces(tokenizer)
    [piece] = concept_pieces(tokenizer, [concept])
    for template, prefix, suffix in zip(IMAGENET_TEMPLATES, prefixes, suffixes, strict=True):
        assert prefix + piece + suffix == tokenizer.encode(template.format(said))


def test_combining_mark_at_the_end_of_a_concept_is_kept(tokenizer):
    """The one known case where joining differs from the whole: the mark and the full stop."""
    [piece] = concept_pieces(tokenizer, ["हिन्दी"])
    assert piece == tokenizer.encode("हिन्दी")
    assert piece + tokenizer.encode(".") != tokenizer.encode("हिन्दी.")


def test_concept_without_letter_or_digit_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"'--'"):
        concept_pieces(tokenizer, ["dog", "--"])


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}.", "a{}.", "a {}s", "{}!"])
def test_template_that_cannot_be_joined_is_refused(tokenizer, template):
    with pytest.raises(UserError, match="it must contain one {}"):
        template_pieces(tokenizer, [template])


def test_bare_template_joins(tokenizer):
    assert template_pieces(tokenizer, ["{}"]) == ([[]], [[]])


def test_template_sets_are_complete():
    assert len(set(IMAGENET_TEMPLATES)) == 80
    assert len(set(SUBSET_TEMPLATES)) == 7
    assert {*SUBSET_TEMPLATES, SIMPLE_TEMPLATE} < set(IMAGENET_TEMPLATES)
