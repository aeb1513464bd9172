"""The gallery: the list of visual concepts that are found in captions and ranked by curation."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.files import write_file

if TYPE_CHECKING:
    import inflect

DEFAULT_GALLERY = epath.resource_path("data_prep") / "gallery" / "default_gallery.json"

# What neither the rules nor inflect get right.
_PLURALS = {
    "atlas": "atlases",
    "cactus": "cacti",
    "canvas": "canvases",
    "christmas": "christmases",
    "gas": "gases",
    "golf": "golf",
    "ibis": "ibises",
    "iris": "irises",
    "lens": "lenses",
    "mantis": "mantises",
    "mine": "mines",
    "money": "money",
    "oasis": "oases",
    "rhinoceros": "rhinoceroses",
    "thermos": "thermoses",
    "trellis": "trellises",
}
_LAST_LATIN = "\u024f"


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Visual concepts in their final order; a concept's id is its position.

    Attributes:
        concepts: lower-case concepts of one or more words, each once.
    """

    concepts: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the concepts and their order."""
        return hashlib.sha256(json.dumps(self.concepts).encode()).hexdigest()[:16]

    @classmethod
    def build(cls, concepts: Iterable[str]) -> "Gallery":
        """Lower-cases the concepts, removes duplicates, and appends missing plurals.

        Building from the concepts of a built gallery changes nothing.
        """
        known = dict.fromkeys(" ".join(concept.lower().split()) for concept in concepts)
        known.pop("", None)
        plurals = [plural(concept) for concept in known]
        # A concept that is the plural of another one has no plural of its own.
        taken = set(plurals)
        new = [many for one, many in zip(known, plurals, strict=True) if one not in taken]
        return cls(tuple(dict.fromkeys([*known, *new])))

    @classmethod
    def load(cls, path: epath.PathLike = DEFAULT_GALLERY) -> "Gallery":
        """Reads lists of concepts from JSON, e.g. `{"concept": ["person", "girl"]}`.

        Args:
            path: a file with an object of lists; the lists are concatenated, whatever their keys.

        Raises:
            UserError: the file is missing or holds something else.
        """
        try:
            lists = json.loads(epath.Path(path).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"gallery {path}: cannot be read as JSON ({error})") from None
        gallery = cls.build(_concatenated(lists))
        if not gallery.concepts:
            raise UserError(
                f'gallery {path}: holds no list of concepts; write {{"concept": ["person", …]}}'
            )
        return gallery

    def save(self, path: epath.PathLike) -> None:
        """Writes the concepts as JSON that `load` reads back unchanged."""
        write_file(path, json.dumps({"concept": self.concepts}, indent=1))


def plural(concept: str) -> str:
    """The concept with its last word in the plural; plural concepts are returned unchanged."""
    before, space, word = concept.rpartition(" ")
    return before + space + _plural_word(word)


def _plural_word(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith(("us", "ss")):
        return f"{word}es"
    if word.endswith("s") or not word or word[-1] > _LAST_LATIN:
        return word
    engine = _inflect()
    # What ends in s is decided above, because inflect takes "bus" for the plural of "bu".
    return word if engine.singular_noun(word) else engine.plural_noun(word).lower()


def possible_singulars(word: str) -> set[str]:
    """Words of which `word` may be the plural; `plural` decides which ones are."""
    found = {one for one, many in _PLURALS.items() if many == word}
    if word.endswith("s"):
        found |= {word[:-1], word[:-2], f"{word[:-3]}y", f"{word[:-2]}is"}
    if word and word[-1] <= _LAST_LATIN:
        found.add(_inflect().singular_noun(word) or "")
    return found - {"", word}


@functools.cache
def _inflect() -> "inflect.engine":
    import inflect  # takes two seconds, and only building a gallery needs it

    return inflect.engine()


def _concatenated(lists: object) -> list[str]:
    """Strings of all lists of a JSON object, or none at all when it holds anything else."""
    if not isinstance(lists, dict) or not all(isinstance(part, list) for part in lists.values()):
        return []
    concepts = [concept for part in lists.values() for concept in part]
    return concepts if all(isinstance(concept, str) for concept in concepts) else []
