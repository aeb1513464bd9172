"""Nouns of captions as in GroupViT: the words that NLTK's part-of-speech tagger tags NN…

NLTK and its tagger's data are not requirements; only `image_text --nouns` needs them.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import regex

from cocu_jax.errors import UserError
from cocu_jax.input.prompts import LONGEST_NOUN
from cocu_jax.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nltk.tag.perceptron import PerceptronTagger

# No abbreviation of single letters, "U.S. Army": its full stop ends no sentence.
_SENTENCE_END = regex.compile(r"(?<=\w\w[.!?]) ")
# No punctuation at the ends, but perhaps a combining mark, as in `templates.concept_pieces`.
_WORD = regex.compile(r"[\p{L}\p{N}](.*[\p{L}\p{N}\p{M}])?")
_LETTER = regex.compile(r"\p{L}")
_QUOTES = ("``", "''")  # as NLTK writes double quotation marks, whatever the caption has
# A word has a token at least, and there are 77; the tagger looks two words ahead.
_LOOKED_AT = 80


class NounFinder:
    """Finds the nouns of a caption among its tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Loads the tagger.

        Raises:
            UserError: NLTK or the tagger's data is not installed.
        """
        self._tagger = load_tagger()
        from nltk.tokenize import NLTKWordTokenizer

        self._split = NLTKWordTokenizer().tokenize
        self._encode = tokenizer.encode

    def __call__(self, caption: str, tokens: Sequence[int]) -> list[int]:
        """Spans of the nouns: start, length, start, length …

        `tokens[start : start + length]` is a noun's tokens, because no token reaches from one word
        into the next. Every noun is given once, where it is first. Nouns of more than
        `LONGEST_NOUN` tokens are left out, and those whose tokens are not all there.

        Args:
            caption: words with one space between them.
            tokens: the caption's, with start and end tokens, perhaps cut off.
        """
        tokens = list(tokens)
        spans: dict[tuple[int, ...], tuple[int, int]] = {}
        done, counted = 0, 1
        for start, end in self._places(" ".join(caption.split(" ")[:_LOOKED_AT])):
            space = caption.rfind(" ", 0, start) + 1  # no token reaches over it: counted once
            counted += len(self._encode(caption[done:space]))
            done = space
            first = counted + len(self._encode(caption[space:start]))
            if first >= len(tokens):
                break
            noun = self._encode(caption[start:end])
            if len(noun) <= LONGEST_NOUN and tokens[first : first + len(noun)] == noun:
                spans.setdefault(tuple(noun), (first, len(noun)))
        return [number for span in spans.values() for number in span]

    def _places(self, caption: str) -> Iterator[tuple[int, int]]:
        """Where nouns start and end in the caption, in order."""
        end = 0
        for sentence in _SENTENCE_END.split(caption):
            for word, tag in self._tagger.tag(self._split(sentence)):
                start = caption.find(word, end)
                if start < 0 or word in _QUOTES:
                    continue
                end = start + len(word)
                core = _WORD.search(word)
                if tag.startswith("NN") and core and _LETTER.search(core[0]):
                    yield start + core.start(), start + core.end()


def load_tagger() -> "PerceptronTagger":
    """NLTK's tagger of English, the one behind `nltk.pos_tag`.

    Raises:
        UserError: NLTK or the tagger's data is not installed.
    """
    remedy = 'pip install "nltk>=3.9" && python -m nltk.downloader averaged_perceptron_tagger_eng'
    try:
        from nltk.tag.perceptron import PerceptronTagger

        return PerceptronTagger()
    except ImportError:
        missing = "NLTK"
    except LookupError:
        missing = "the data of NLTK's tagger"
    raise UserError(f"--nouns: {missing} is not installed; {remedy}")
