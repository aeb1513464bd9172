"""Rates of the text work of data preparation, on one core: `python -m benchmarks.text`.

The other tokenizer is the one of transformers with the same vocabulary, given CLIP's clean-up; the
other extractor is method step 1.2 written down with NLTK.
"""

import os
import random
import statistics
import time
from collections.abc import Callable

os.environ["RAYON_NUM_THREADS"] = "1"  # before transformers: one core against one core

import ftfy
from nltk.tokenize import TreebankWordTokenizer
from nltk.util import everygrams
from transformers import CLIPTokenizer

from benchmarks.figures import print_figure
from cocu_jax.models.tokenizer import Tokenizer, merges, vocabulary
from data_prep.gallery.concepts import ConceptExtractor
from data_prep.gallery.gallery import Gallery

_CAPTIONS = 10_000
_REPEATS = 5


def main() -> None:
    """Prints one JSON line per figure."""
    gallery = Gallery.load()
    captions = _captions(gallery, _CAPTIONS)
    ours, theirs = _interleaved(Tokenizer(), _transformers_tokenizer(), captions)
    print_figure("tokenizer_rate", _CAPTIONS / ours, "captions/s/core", 20_000)
    print_figure("tokenizer_against_transformers", theirs / ours, "ratio", 1.0)

    extractor = ConceptExtractor(gallery)
    ours, theirs = _interleaved(
        lambda texts: [extractor(text) for text in texts], _nltk_extractor(gallery), captions
    )
    print_figure("concept_extraction_rate", _CAPTIONS / ours, "captions/s/core", 20_000)
    print_figure("concept_extraction_against_nltk", theirs / ours, "ratio", 1.0)


def _captions(gallery: Gallery, count: int) -> list[str]:
    """Captions of 4 to 20 words: common ones, Zipf-distributed concepts, rare names and numbers."""
    draw = random.Random(0)
    common = (
        "a the of in on with and at to two photo person view my front, under. day! (new)".split()
    )
    weights = [1 / (rank + 10) for rank in range(len(gallery.concepts))]
    texts = []
    for _ in range(count):
        words = draw.choices(common, k=draw.randint(2, 8))
        words += draw.choices(gallery.concepts, weights, k=draw.randint(2, 10))
        words += [f"{draw.choice('BCDFGKLMNPRST')}{draw.choice('aeiou')}{draw.randrange(16**4):x}"]
        draw.shuffle(words)
        texts.append(" ".join(words) + draw.choice(("", ".") * 5 + (" – it’s nice",)))
    return texts


def _transformers_tokenizer() -> Callable[[list[str]], object]:
    tokenizer = CLIPTokenizer(vocabulary(), merges())
    return lambda texts: tokenizer([ftfy.fix_text(text) for text in texts])["input_ids"]


def _nltk_extractor(gallery: Gallery) -> Callable[[list[str]], object]:
    treebank, known = TreebankWordTokenizer(), {c: i for i, c in enumerate(gallery.concepts)}

    def extract(texts: list[str]) -> list[list[int]]:
        grams = [everygrams(treebank.tokenize(text.lower()), 1, 4) for text in texts]
        joined = [dict.fromkeys(" ".join(gram) for gram in row) for row in grams]
        return [[known[gram] for gram in row if gram in known] for row in joined]

    return extract


def _interleaved(ours: Callable, theirs: Callable, captions: list[str]) -> tuple[float, float]:
    """Median seconds of both over all captions, timed in turns after one warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(_REPEATS + 1):
        for work, taken in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            work(captions)
            if turn:
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
