"""Penn Treebank words of a caption."""

import re

# MacIntyre's sed script for the Penn Treebank (1995), for one piece of lower-case text between two
# spaces. The order matters: a rule sees the spaces that earlier ones have put in.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r'^"', "``"),
        (r"``", " `` "),
        (r"""([ ([{<])(?:"|'')""", r"\1 `` "),
        (r"([:,])([^\d])", r" \1 \2"),
        (r"([:,])$", r" \1 "),
        (r"\.{2,}", r" \g<0> "),  # the script has three alone; NLTK's word_tokenize has this
        (r"[;@#$%&]", r" \g<0> "),
        (r"""([^.])\.([\])}>"']*)\s*$""", r"\1 .\2 "),
        (r"[?!]", r" \g<0> "),
        (r"([^'])' ", r"\1 ' "),
        (r"[][(){}<>]", r" \g<0> "),
        (r"--", " -- "),
        (r"^|$", " "),
        (r"''|\"", " '' "),
        (r"([^' ])('[smd]|') ", r"\1 \2 "),
        (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
        (r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon)(na)\b|\b(got)(ta)\b", r" \1\3\5\7 \2\4\6\8 "),
        (r"\b(d)('ye)\b|\b(more)('n)\b|\b(wan)(na)(?=\s)", r" \1\3\5 \2\4\6 "),
        (r" ('t)(is)\b", r" \1 \2 "),
        (r" ('t)(was)\b", r" \1 \2 "),
    )
)
# A corpus has few frequent words. The bounds keep the memory of millions of captions flat.
_CACHED_PIECES = 100_000
_CACHED_LENGTH = 32


class WordSplitter:
    """Splits lower-cased text into words: `don't` into `do n't`, punctuation off.

    Every piece between spaces is split by itself, so that the full stop of any sentence comes off
    without looking for sentences (as does that of "st. bernard").
    """

    def __init__(self) -> None:
        self._cache: dict[str, list[str]] = {}

    def __call__(self, text: str) -> list[str]:
        """The words of `text`, in order."""
        words = []
        for piece in text.lower().split():
            words += self._cache.get(piece) or self._split(piece)
        return words

    def _split(self, piece: str) -> list[str]:
        text = piece
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        words = text.split()
        if len(piece) <= _CACHED_LENGTH and len(self._cache) < _CACHED_PIECES:
            self._cache[piece] = words
        return words
