"""Concepts are found in captions exactly as word n-grams of the Penn Treebank's tokens."""

import itertools
import pickle
import random
import re

import pytest
from hard_strings import hard_strings
from nltk.tokenize import NLTKWordTokenizer, TreebankWordTokenizer
from nltk.util import ngrams

from data_prep.gallery.concepts import ConceptExtractor
from data_prep.gallery.gallery import Gallery
from data_prep.gallery.words import WordSplitter

CLITICS = """don't it's I'd we'll they've you're i'm cannot can-not D'YE gimme gonna gotta lemme
more'n wanna wanna, 'tis 'twas 'Tisn't dogs' ''quoted'' "'x'" o'clock rock'n'roll n't""".split()


@pytest.fixture(scope="module")
def gallery():
    return Gallery.load()


@pytest.fixture(scope="module")
def extract(gallery):
    return ConceptExtractor(gallery)


def treebank_tokenizer():
    """The Treebank's tokenizer with `nltk.word_tokenize`'s rule for two full stops and more."""
    (dots,) = (rule for rule in NLTKWordTokenizer.PUNCTUATION if rule[0].pattern == r"\.{2,}")
    tokenizer = TreebankWordTokenizer()
    tokenizer.PUNCTUATION = [
        dots if rule[0].pattern == r"\.\.\." else rule for rule in tokenizer.PUNCTUATION
    ]
    assert dots in tokenizer.PUNCTUATION
    return tokenizer


def oracle(caption: str, known: dict[str, str]) -> list[str]:
    """Step by step: sentences, Treebank tokens, all 1- to 4-grams, those in `known`."""
    treebank = treebank_tokenizer()
    tokens = []
    for sentence in re.split(r"(?<=[.])\s+", " ".join(caption.lower().split())):
        tokens += treebank.tokenize(sentence)
    places = {}
    for size in (1, 2, 3, 4):
        for place, gram in enumerate(ngrams(tokens, size)):
            places.setdefault(" ".join(gram), (place, size))
    return [known[gram] for gram in sorted(known.keys() & places.keys(), key=places.get)]


def captions(count: int) -> list[str]:
    """Captions with the punctuation that people write, and gallery concepts in all positions."""
    draw = random.Random(3)
    fillers = (
        "a the two in front of , and . ; : ( ) \" ' don't it's can't john's 3 #1 & @home -- ... ! ?"
    )
    words = fillers.split() * 20 + list(Gallery.load().concepts)
    endings = ("", ".", "!", ",", '."', ".)", "'", " .", "...", '"')
    texts = []
    for _ in range(count):
        pieces = draw.choices(words, k=draw.randint(0, 18))
        glued = [
            piece + draw.choice(("", "", "", ",", "'s", ";", ")", "?", ".")) for piece in pieces
        ]
        texts.append(draw.choice(('"', "", "", "(")) + " ".join(glued) + draw.choice(endings))
    return texts


def test_concepts_equal_the_n_grams_of_treebank_tokens(extract, gallery):
    treebank = treebank_tokenizer()
    known = {" ".join(treebank.tokenize(concept)): concept for concept in gallery.concepts}
    found = 0
    for caption in captions(2000) + hard_strings(500, seed=2)[30:]:
        concepts = [gallery.concepts[number] for number in extract(caption)]
        assert concepts == oracle(caption, known), caption
        found += len(concepts)
    assert found > 10_000


def find(caption: str, *concepts: str) -> list[str]:
    gallery = Gallery(concepts)
    return [concepts[number] for number in ConceptExtractor(gallery)(caption)]


def test_concepts_come_once_by_place_of_first_occurrence():
    assert find("Red car, a CAR and a dog; red car", "dog", "car", "red car") == [
        "red car",
        "car",
        "dog",
    ]
    assert find("hot dog stand", "hot dog stand", "hot dog", "hot", "dog") == [
        "hot",
        "hot dog",
        "hot dog stand",
        "dog",
    ]


def test_part_of_a_word_is_no_concept():
    assert find("cattle near a catalogue, dog-eared", "cat", "log", "dog") == []


def test_concepts_do_not_reach_across_punctuation():
    assert find("by the hot, dog. house", "hot dog", "dog house") == []


@pytest.mark.parametrize("dots", [".", "..", "...", "....", "..)", '.."', "..,"])
def test_full_stops_after_a_word_do_not_hide_its_concept(dots):
    assert NLTKWordTokenizer().tokenize(f"dog{dots}")[0] == "dog"
    assert find(f"a table{dots} dog{dots}", "table", "dog") == ["table", "dog"]


def test_concept_of_five_words_is_never_found():
    assert find("a b c d e", "a b c d", "a b c d e") == ["a b c d"]


def test_concepts_with_apostrophes_and_full_stops_are_found():
    assert find("a Men's shoe on St. Bernard.", "men's shoe", "st. bernard") == [
        "men's shoe",
        "st. bernard",
    ]


def test_words_equal_nltks_treebank_tokenizer():
    """On pieces of hard strings, and on all short strings of the characters that have rules."""
    treebank, words = treebank_tokenizer(), WordSplitter()
    pieces = {
        piece for text in captions(1000) + hard_strings(2000, 4)[30:] for piece in text.split()
    }
    pieces |= {
        "".join(p) for n in (1, 2, 3) for p in itertools.product("a5:,.;'\"`-?)([&", repeat=n)
    }
    pieces |= {
        f"{p}{q}" for p in CLITICS for q in ("", *CLITICS, ".", ",", "'", '"', ".)", "!", "x")
    }
    for piece in pieces:
        assert words(piece) == treebank.tokenize(piece.lower()), piece


def test_words_beyond_the_cache_are_split_alike(monkeypatch):
    cached = WordSplitter()
    expected = [cached(caption) for caption in captions(100)]
    monkeypatch.setattr("data_prep.gallery.words._CACHED_PIECES", 0)
    bare = WordSplitter()
    assert [bare(caption) for caption in captions(100)] == expected
    assert not bare._cache


def test_extractor_survives_pickling(extract):
    caption = "two dogs and a fire truck"
    assert pickle.loads(pickle.dumps(extract))(caption) == extract(caption)
    assert len(extract(caption)) == 4  # dogs, fire, fire truck, truck
