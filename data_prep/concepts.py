"""Finding the gallery's concepts in captions."""

from nltk.tokenize import TreebankWordTokenizer

from data_prep.gallery import Gallery

_LONGEST_CONCEPT = 4  # words
# A corpus has few frequent words. The bounds keep the memory of millions of captions flat.
_CACHED_PIECES = 100_000
_CACHED_LENGTH = 32


class WordTokenizer:
    """Penn Treebank words of lower-cased text: `don't` gives `do n't`, punctuation stands alone.

    Every piece between spaces is tokenised by itself, so the full stop of any sentence is split off
    without looking for sentences (and that of "st. bernard", too).
    """

    def __init__(self) -> None:
        self._treebank = TreebankWordTokenizer()
        self._cache: dict[str, list[str]] = {}

    def __reduce__(self):
        return WordTokenizer, ()

    def __call__(self, text: str) -> list[str]:
        """The words of `text`, in order."""
        words = []
        for piece in text.lower().split():
            words += self._cache.get(piece) or self._split(piece)
        return words

    def _split(self, piece: str) -> list[str]:
        words = self._treebank.tokenize(piece)
        if len(piece) <= _CACHED_LENGTH and len(self._cache) < _CACHED_PIECES:
            self._cache[piece] = words
        return words


class ConceptExtractor:
    """Finds concepts as runs of 1 to 4 words, of which a part of a word is none.

    The concepts' own words are tokenised like the captions', so "men's shoe" is found.
    """

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._words = WordTokenizer()
        self._ids: dict[str, int] = {}
        # The lengths that the concepts with this first word have: most words have none.
        self._lengths: dict[str, tuple[int, ...]] = {}
        for number, concept in enumerate(gallery.concepts):
            words = self._words(concept)
            if words and len(words) <= _LONGEST_CONCEPT:
                self._ids.setdefault(" ".join(words), number)
                lengths = {*self._lengths.get(words[0], ()), len(words)}
                self._lengths[words[0]] = tuple(sorted(lengths))

    def __reduce__(self):
        return ConceptExtractor, (self._gallery,)

    def __call__(self, caption: str) -> list[int]:
        """Ids of the caption's concepts, each once, by place of first occurrence."""
        words = self._words(caption)
        found: dict[int, None] = {}
        for start, word in enumerate(words):
            for length in self._lengths.get(word, ()):
                number = self._ids.get(" ".join(words[start : start + length]))
                if number is not None:
                    found[number] = None
        return list(found)
