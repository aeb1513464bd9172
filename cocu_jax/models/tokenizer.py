"""CLIP's byte-level BPE tokenizer; the vocabulary is part of the package."""

import functools
import gzip
import html
import pathlib
from collections.abc import Iterable

import ftfy
import numpy as np
import regex
from jaxtyping import Int
from tokenizers.models import BPE

SOT = 49406
EOT = 49407
CONTEXT_LENGTH = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"
_MERGES_FILE = pathlib.Path(__file__).with_name("clip_merges.txt.gz")

# CLIP's own expression, for the `regex` package as in CLIP. Other engines have different Unicode
# tables and different rules for ignoring case.
_WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
# The cache is bounded, because the captions of a large corpus contain millions of rare words.
_CACHED_WORDS = 100_000
_CACHED_LENGTH = 32


def clean(text: str) -> str:
    """Normalises text as CLIP does: fixes mojibake and HTML entities, single spaces, lower case."""
    # A fast path: printable ASCII without "&" contains nothing that ftfy or unescape would change
    # (mojibake, curly quotes, ligatures, control characters, line breaks, entities).
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def merges() -> list[tuple[str, str]]:
    """The pairs of tokens that are merged, in order of precedence."""
    lines = gzip.decompress(_MERGES_FILE.read_bytes()).decode().splitlines()
    return [tuple(line.split(" ")) for line in lines]


def vocabulary() -> dict[str, int]:
    """Token ids by token: bytes, bytes that end a word, merged tokens, start and end token."""
    letters = list(_byte_letters().values())
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += ["".join(pair) for pair in merges()]
    return {token: number for number, token in enumerate([*tokens, _START, _END])}


class Tokenizer:
    """CLIP's tokenizer (Radford et al., 2021) of 49,408 tokens; the last two are start and end."""

    def __init__(self) -> None:
        self._letters = _byte_letters()
        self._bpe = _bpe()
        self._cache = {_START: [SOT], _END: [EOT]}

    def __reduce__(self):
        return Tokenizer, ()

    def encode(self, text: str) -> list[int]:
        """Token ids of one text of any length, without start and end."""
        ids = []
        for word in _WORDS.findall(clean(text)):
            ids += self._cache.get(word) or self._encode_word(word)
        return ids

    def sequence(self, text: str, context_length: int = CONTEXT_LENGTH) -> list[int]:
        """Token ids of one text between a start and an end token.

        Args:
            text: the text; if it is too long, its last tokens are dropped.
            context_length: maximum number of tokens, start and end included; at least 2.
        """
        return [SOT, *self.encode(text)[: context_length - 2], EOT]

    def __call__(
        self, texts: Iterable[str], context_length: int = CONTEXT_LENGTH
    ) -> Int[np.ndarray, "n t"]:
        """The `sequence` of many texts, padded with zeros to the context length."""
        sequences = [self.sequence(text, context_length) for text in texts]
        tokens = np.zeros((len(sequences), context_length), np.int32)
        for row, ids in zip(tokens, sequences, strict=True):
            row[: len(ids)] = ids
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, up to the end token."""
        ids = [int(token) for token in tokens]
        ids = ids[: ids.index(EOT)] if EOT in ids else ids
        letters = "".join(self._names[token] for token in ids if token != SOT)
        bytes_of = {letter: byte for byte, letter in _byte_letters().items()} | {" ": ord(" ")}
        text = bytes(bytes_of[letter] for letter in letters.replace("</w>", " "))
        return text.decode(errors="replace").strip()

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        return {number: token for token, number in vocabulary().items()}

    def _encode_word(self, word: str) -> list[int]:
        letters = "".join(map(self._letters.__getitem__, word.encode()))
        ids = [token.id for token in self._bpe.tokenize(letters)]
        if len(word) <= _CACHED_LENGTH and len(self._cache) < _CACHED_WORDS:
            self._cache[word] = ids
        return ids


@functools.cache
def _bpe() -> BPE:
    """The merges as a program: 0.3 s of work, and never changed by those who use it."""
    return BPE(vocab=vocabulary(), merges=merges(), end_of_word_suffix="</w>")


def _byte_letters() -> dict[int, str]:
    """The printable character that stands for each byte in the vocabulary, in vocabulary order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + place) for place, byte in enumerate(others)}
