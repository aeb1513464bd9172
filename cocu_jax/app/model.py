"""The app's models: opened once, bound to whatever words are asked for."""

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
_BLOCKS = 16  # one photo has a few windows: the blocks that suit thousands would be almost empty
_REFINED_PIXELS = 4_000_000  # refining more takes minutes on a CPU


@dataclasses.dataclass(frozen=True)
class Request:
    """How a photo is to be segmented.

    Attributes:
        words: class names, see `split_words`.
        background: threshold of a background class; None: no such class.
        dense: how a CLIP is read, one of `Model.variants`; "" for a GroupViT and for the default.
        refine: let the borders of a CLIP's classes follow the colours of the photo.
    """

    words: tuple[str, ...]
    background: float | None = None
    dense: str = ""
    refine: bool = False


class Model:
    """A checkpoint that segments photos with any words; it remembers their embeddings.

    Attributes:
        variants: ways to read the model, the default first; none for a GroupViT.
    """

    def __init__(self, checkpoint: str, *, templates: str = "", crop: int = 0, short_side: int = 0):
        """Opens a checkpoint.

        Args:
            checkpoint: whatever `Segmenter.load` opens.
            templates: prompts, see `Segmenter.load`; "": "simple" for a GroupViT, and for a CLIP
                the 7 of "subset", since visitors wait for the embeddings of new words.
            crop: side of a window, see `Segmenter.load`.
            short_side: what photos are resized to, see `Segmenter.load`.

        Raises:
            UserError: there is no such checkpoint, or a setting does not fit.
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
            name: of the photo.
            pixels: RGB, uint8.
            request: words and settings.

        Raises:
            UserError: the words do not fit, or the photo is too large to be refined.
        """
        if request.refine and pixels.shape[0] * pixels.shape[1] > _REFINED_PIXELS:
            raise UserError(
                f"The photo has more than {_REFINED_PIXELS // 1_000_000} megapixels, and refining "
                "it takes minutes; drop a smaller one, or do not refine"
            )
        (result,) = self._bind(request).stream([(name, pixels)])
        return result

    def _bind_words(self, request: Request) -> Segmenter:
        changes = {"dense": request.dense} if request.dense else {}
        return self._loaded.with_classes(
            request.words, request.background, self._embed, pamr=request.refine, **changes
        )


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
