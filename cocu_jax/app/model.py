"""The models of the app: opened once, and bound to the class names of each request."""

import dataclasses
import functools

import numpy as np
from jaxtyping import UInt8

from cocu_jax.errors import UserError
from cocu_jax.models.dense_clip import VARIANTS
from cocu_jax.segmentation import Segmentation, Segmenter
from eval.dense import DenseMethod

MAX_WORDS, _MAX_LETTERS = 64, 200
_KEPT_WORDS, _KEPT_BINDINGS = 4096, 32
_BLOCKS = 16  # blocks are this many times smaller than for benchmarks: a photo has few windows
_REFINED_PIXELS = 4_000_000  # refinement of more pixels takes minutes on a CPU


@dataclasses.dataclass(frozen=True)
class Request:
    """Class names and settings for a photo.

    Attributes:
        words: class names, see `split_words`.
        background: threshold of a background class; None: no such class.
        dense: method for a CLIP, one of `Model.variants`; "" for the default, and for a GroupViT.
        refine: whether to refine the classes of a CLIP along the colour edges of the photo.
    """

    words: tuple[str, ...]
    background: float | None = None
    dense: str = ""
    refine: bool = False


class Model:
    """A checkpoint that segments photos into any classes, and caches text embeddings.

    Attributes:
        variants: dense methods of a CLIP, the default first; empty for a GroupViT.
    """

    def __init__(self, checkpoint: str, *, templates: str = "", crop: int = 0, short_side: int = 0):
        """Opens a checkpoint.

        Args:
            checkpoint: any checkpoint that `Segmenter.load` opens.
            templates: prompt templates, see `Segmenter.load`; "": "simple" for a GroupViT, and
                "subset" for a CLIP, because visitors wait for the embeddings of new words.
            crop: side of the sliding window, see `Segmenter.load`.
            short_side: short side of resized photos, see `Segmenter.load`.

        Raises:
            UserError: the checkpoint does not exist, or a setting is not valid.
        """
        loaded = Segmenter.load(
            checkpoint,
            ("thing",),
            templates=templates or "subset",
            crop=crop,
            short_side=short_side,
            with_groups=True,
        )
        self.variants: tuple[str, ...] = ()
        protocol = loaded.engine.protocol
        if isinstance(loaded.engine.method, DenseMethod):
            default = protocol.dense
            self.variants = (default, *(name for name in VARIANTS if name != default))
        elif not templates:
            protocol = dataclasses.replace(loaded.engine.protocol, templates="simple")
        windows = max(loaded.engine.windows_per_forward // _BLOCKS, 1)
        engine = dataclasses.replace(loaded.engine, protocol=protocol, windows_per_forward=windows)
        self._loaded = dataclasses.replace(loaded, engine=engine)
        self._embed = functools.lru_cache(_KEPT_WORDS)(self._loaded.embed_class)
        self._bind = functools.lru_cache(_KEPT_BINDINGS)(self._bind_words)

    def segment(
        self, name: str, pixels: UInt8[np.ndarray, "h w 3"], request: Request
    ) -> Segmentation:
        """Segments one photo.

        Args:
            name: name of the photo.
            pixels: RGB pixels.
            request: class names and settings.

        Raises:
            UserError: the class names are not valid, or the photo is too large for refinement.
        """
        if request.refine and pixels.shape[0] * pixels.shape[1] > _REFINED_PIXELS:
            raise UserError(
                f"The photo has more than {_REFINED_PIXELS // 1_000_000} megapixels: refinement "
                "would take minutes; drop a smaller photo, or switch refinement off"
            )
        (result,) = self._bind(request).stream([(name, pixels)])
        return result

    def _bind_words(self, request: Request) -> Segmenter:
        changes = {"dense": request.dense} if request.dense else {}
        return self._loaded.with_classes(
            request.words, request.background, self._embed, pamr=request.refine, **changes
        )


def split_words(text: str) -> tuple[str, ...]:
    """Splits a list of class names at commas and line breaks; never reads a file.

    Raises:
        UserError: there are no names, too many names, a name that is too long, or a name twice.
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
        raise UserError(f"{twice[0]!r} is listed more than once; keep one")
    return words
