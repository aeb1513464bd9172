"""The app's model: opened once, bound to whatever words are asked for."""

import functools

import numpy as np
from jaxtyping import UInt8

from cocu_jax.errors import UserError
from cocu_jax.segmentation import Segmentation, Segmenter

MAX_WORDS, _MAX_LETTERS = 64, 200
_KEPT_WORDS, _KEPT_BINDINGS = 4096, 32


class Model:
    """A checkpoint that segments photos with any words; it remembers their embeddings."""

    def __init__(self, checkpoint: str):
        """Opens a checkpoint.

        Args:
            checkpoint: whatever `Segmenter.load` opens.

        Raises:
            UserError: there is no such checkpoint.
        """
        self._loaded = Segmenter.load(checkpoint, ("thing",), with_groups=True)
        self._embed = functools.lru_cache(_KEPT_WORDS)(self._loaded.embed_class)
        self._bind = functools.lru_cache(_KEPT_BINDINGS)(self._bind_words)

    def segment(
        self,
        name: str,
        pixels: UInt8[np.ndarray, "h w 3"],
        words: tuple[str, ...],
        background: float | None,
    ) -> Segmentation:
        """Segments one photo.

        Args:
            name: of the photo.
            pixels: RGB, uint8.
            words: class names, see `split_words`.
            background: threshold of a background class; None: no such class.

        Raises:
            UserError: the words do not fit.
        """
        (result,) = self._bind(words, background).stream([(name, pixels)])
        return result

    def _bind_words(self, words: tuple[str, ...], background: float | None) -> Segmenter:
        return self._loaded.with_classes(words, background, self._embed)


def split_words(text: str) -> tuple[str, ...]:
    """Class names from a list with commas or line breaks; never the name of a file.

    Raises:
        UserError: no names, too many or too long ones, or a name twice.
    """
    parts = str(text or "").replace("\n", ",").split(",")
    words = tuple(word for part in parts if (word := " ".join(part.split())))
    if not words:
        raise UserError("There are no words; type some, separated by commas: dog, grass, sky")
    if len(words) > MAX_WORDS:
        raise UserError(f"{len(words)} words are too many; type at most {MAX_WORDS}")
    if max(map(len, words)) > _MAX_LETTERS:
        raise UserError(f"A word is longer than {_MAX_LETTERS} letters; separate words by commas")
    if twice := [word for word in words if words.count(word) > 1]:
        raise UserError(f"{twice[0]!r} is there more than once; keep one")
    return words
