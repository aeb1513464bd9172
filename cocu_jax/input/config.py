"""What a training batch is made of."""

import dataclasses
from collections.abc import Mapping

from cocu_jax.errors import UserError

CONCEPT_SOURCES = ("cluster", "top", "caption", "nouns", "none")
AUGMENTATIONS = ("none", "crop", "full")


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """The fields of `config.data`.

    Attributes:
        corpora: mappings with `directory`, `split`, optional `annotations` (sidecar directory) and
            optional `weight` (relative share; by default the number of examples).
        concepts: where prompts come from: "cluster" and "top" need annotations; "caption" takes the
            gallery concepts of the caption, "nouns" all its nouns where the corpus was prepared
            with `image_text --nouns`; "none" makes no prompts.
        prompts: prompts per image.
        prompt_length: positions of a prompt. Every prompt of the gallery, or of nouns of 8 tokens,
            must fit. Where a sample has too few concepts its caption stands in, at its full length.
        caption_length: positions of a caption.
        image_size: side of the images in pixels.
        augment: "none" (resize only), "crop" (random resized crop and flip) or "full" (also
            RandAugment, and random erasing on the device).
        crop_area: smallest and largest share of the image that a crop takes.
        mean, std: normalisation, applied by `augment.device_augment`.
        lanes: virtual readers of all processes together; its greatest common divisor with the batch
            size is used, and the number of processes must divide that. A corpus needs as many
            examples.
        window: raw records per lane and corpus that are permuted among each other; two windows are
            held in memory (64 lanes, 128 records of 15 kB: 250 MB a corpus).
    """

    corpora: tuple[Mapping, ...] = ()
    concepts: str = "cluster"
    prompts: int = 3
    prompt_length: int = 32
    caption_length: int = 77
    image_size: int = 224
    augment: str = "full"
    crop_area: tuple[float, float] = (0.08, 1.0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    lanes: int = 64
    window: int = 128

    def __post_init__(self):
        for name, choices in (("concepts", CONCEPT_SOURCES), ("augment", AUGMENTATIONS)):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"data.{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}"
                )
        if not self.corpora:
            raise UserError("data.corpora is empty; name at least one (directory and split)")


def input_config(data: Mapping) -> InputConfig:
    """Checks the fields of `config.data`.

    Raises:
        UserError: a field is unknown or missing, or has a value that is none of its choices.
    """
    known = [field.name for field in dataclasses.fields(InputConfig)]
    for name in data:
        if name not in known:
            raise UserError(f"data.{name}: no such field; the fields are {', '.join(known)}")
    return InputConfig(**data)
