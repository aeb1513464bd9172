"""What a training batch is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from cocu_jax.errors import UserError
from cocu_jax.settings import (
    Amount,
    PositiveAmount,
    PositiveCount,
    Share,
    only_its_fields,
    read_settings,
)

PositiveShare = Annotated[PositiveAmount, pydantic.Field(le=1)]
Length = Annotated[PositiveCount, pydantic.Field(ge=2)]  # begin and end of a text take two


@only_its_fields
@dataclass(frozen=True)
class CorpusConfig:
    """One of `config.data.corpora`.

    Attributes:
        directory: of the prepared dataset.
        split: name of the split.
        annotations: directory of the curation's annotations; empty: none.
        weight: relative share of the corpus; 0: its number of examples.
    """

    directory: str
    split: str
    annotations: str = ""
    weight: Amount = 0.0


@only_its_fields
@dataclass(frozen=True)
class InputConfig:
    """The fields of `config.data`.

    Attributes:
        corpora: at least one.
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
            size is used, and the number of processes must divide that (768 suits 256 processes and
            batches of 2^n or 3 x 2^n rows). A corpus needs as many examples.
        window: raw records per lane and corpus that are taken in turn; two windows are held in
            memory (256 lanes, 64 records of 15 kB: 500 MB a corpus, of all processes together).
    """

    corpora: tuple[CorpusConfig, ...] = ()
    concepts: Literal["cluster", "top", "caption", "nouns", "none"] = "cluster"
    prompts: PositiveCount = 3
    prompt_length: Length = 32
    caption_length: Length = 77
    image_size: PositiveCount = 224
    augment: Literal["none", "crop", "full"] = "full"
    crop_area: tuple[PositiveShare, PositiveShare] = (0.08, 1.0)
    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)
    std: tuple[PositiveAmount, PositiveAmount, PositiveAmount] = (0.229, 0.224, 0.225)
    lanes: PositiveCount = 768
    window: PositiveCount = 64

    def __post_init__(self):
        if self.crop_area[0] > self.crop_area[1]:
            raise UserError(
                f"config.data.crop_area={self.crop_area}: the smallest share comes first"
            )
        if not self.corpora:
            raise UserError("config.data.corpora is empty; name at least one (directory and split)")


def input_config(data: Mapping) -> InputConfig:
    """Checks the fields of `config.data`.

    Raises:
        UserError: a field is unknown or missing, or has a value that is not allowed.
    """
    return read_settings(InputConfig, data, "config.data")
