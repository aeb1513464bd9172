"""Settings of OpenMoji Scenes, which determine pictures and captions completely."""

import dataclasses
import hashlib
import json

from cocu_jax.errors import UserError
from data_prep.scenes.artwork import ARTWORK
from data_prep.scenes.stuff import TEXTURES


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """One variant of the corpus; equal settings give equal bytes.

    Attributes:
        seed: decides every random choice; scene i of a split depends on (seed, split, i) only.
        image_size: height and width of a scene in pixels.
        things: names of the artworks that appear (keys of `artwork.ARTWORK`).
        stuff: names of the backgrounds that appear (keys of `stuff.TEXTURES`).
        two_things: probability that a scene shows two things instead of one.
        two_stuff: probability that a scene is divided between two backgrounds.
        thing_size: least and largest long side of a thing, as a share of the image side; two things
            are a fifth smaller.
        things_omitted: probability that a thing is left out of its `pretrain` caption.
        stuff_omitted: the same for a background. Systematic by default: captions name the thing and
            hardly ever what lies behind it.
        clip_scenes, pretrain_scenes, selection_scenes, validation_scenes: sizes of the splits;
            `complete` holds the scenes of `pretrain`.
        shards: number of files of every split, so that several processes can share the work.
    """

    seed: int = 0
    image_size: int = 64
    things: tuple[str, ...] = (
        "car", "tree", "house", "pizza", "fish", "umbrella", "elephant", "pig", "banana", "horse",
    )  # fmt: skip
    stuff: tuple[str, ...] = ("sky", "grass", "sand", "water", "snow", "brick wall")
    two_things: float = 0.35
    two_stuff: float = 0.3
    thing_size: tuple[float, float] = (0.5, 0.8)
    things_omitted: float = 0.1
    stuff_omitted: float = 0.95
    clip_scenes: int = 8_000
    pretrain_scenes: int = 16_000
    selection_scenes: int = 1_000
    validation_scenes: int = 1_000
    shards: int = 8

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # lists, as configs hold them, become tuples
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        _require_known("things", self.things, ARTWORK)
        _require_known("stuff", self.stuff, TEXTURES)
        for name in ("two_things", "two_stuff", "things_omitted", "stuff_omitted"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"scenes.{name}={getattr(self, name)}: not a probability in 0..1")
        low, high = self.thing_size
        if not 0.3 <= low <= high <= 0.8:
            raise UserError(
                f"scenes.thing_size={self.thing_size}: wants 0.3 <= least <= largest <= 0.8"
            )
        if self.image_size < 32:
            raise UserError(f"scenes.image_size={self.image_size}: things need 32 pixels or more")
        if (smallest := min(self.split_sizes.values())) < self.shards:
            raise UserError(f"scenes.shards={self.shards}: a split of {smallest} scenes has fewer")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, things first; a class's position is its label in the masks."""
        return self.things + self.stuff

    @property
    def split_sizes(self) -> dict[str, int]:
        """Number of scenes of every split."""
        return {
            "clip": self.clip_scenes,
            "pretrain": self.pretrain_scenes,
            "complete": self.pretrain_scenes,
            "selection": self.selection_scenes,
            "validation": self.validation_scenes,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of all settings; names the dataset on disk."""
        fields = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(fields.encode()).hexdigest()[:12]


def _require_known(field: str, names: tuple[str, ...], known) -> None:
    for name in names:
        if name not in known:
            raise UserError(
                f"scenes.{field}: nothing is called {name!r}; choose from {', '.join(known)}"
            )
    if len(set(names)) < len(names) or len(names) < 2:
        raise UserError(f"scenes.{field}={', '.join(names)}: wants two or more different names")
