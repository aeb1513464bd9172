"""Finding the gallery's concepts in captions."""

from data_prep.gallery.gallery import Gallery
from data_prep.gallery.words import WordSplitter

_LONGEST_CONCEPT = 4  # words


class ConceptExtractor:
    """Matches whole-word n-grams (1 to 4 words), never a substring of a word.

    Concepts are tokenised in the same way as captions, so "men's shoe" is found.
    """

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._words = WordSplitter()
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
        """Ids of the caption's concepts, without repetition, in order of first occurrence."""
        words = self._words(caption)
        found: dict[int, None] = {}
        for start, word in enumerate(words):
            for length in self._lengths.get(word, ()):
                number = self._ids.get(" ".join(words[start : start + length]))
                if number is not None:
                    found[number] = None
        return list(found)
