"""The settings of training batches: the fields of `config.data`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from cocu_jax.errors import UserError
from cocu_jax.imagenet_statistics import IMAGENET_MEAN, IMAGENET_STD
from cocu_jax.models.tokenizer import CONTEXT_LENGTH
from cocu_jax.settings import (
    Amount,
    PositiveAmount,
    PositiveCount,
    Share,
    only_its_fields,
    read_settings,
)

PositiveShare = Annotated[PositiveAmount, pydantic.Field(le=1)]
Length = Annotated[PositiveCount, pydantic.Field(ge=2)]  # start and end tokens take two


@only_its_fields
@dataclass(frozen=True)
class CorpusConfig:
    """One entry of `config.data.corpora`.

    Attributes:
        directory: directory of the prepared dataset.
        split: name of the split.
        annotations: directory of the annotations that curation made; empty: none.
        weight: relative share of the corpus in a batch; 0: its number of examples.
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
        corpora: the corpora, at least one.
        concepts: how the concepts of prompts are chosen. "cluster" and "top" need annotations.
            "caption" takes gallery concepts that occur in the caption; "nouns" takes any noun of
            the caption and needs a corpus prepared with `image_text --nouns`. "none" makes no
            prompts.
        prompts: number of prompts per image.
        prompt_length: tokens of a prompt, padding included. Every prompt of the gallery must fit,
            or with "nouns" every prompt of a noun of 8 tokens. If a sample has too few concepts,
            its caption replaces a prompt, at the caption's own length.
        caption_length: tokens of a caption, padding included.
        image_size: side of the images in pixels.
        augment: "none" (resize only), "crop" (random resized crop and flip) or "full" (also
            RandAugment, and random erasing on the device).
        crop_area: smallest and largest area of a crop, as a share of the image.
        mean, std: normalisation, applied by `augment.device_augment`.
        lanes: number of virtual readers of all processes together. The greatest common divisor with
            the batch size is used, and the number of processes must divide it (768 suits up to 256
            processes and batches of 2^n or 3 x 2^n). A corpus needs at least as many examples.
        window: number of raw records per lane and corpus that are shuffled together. Two windows
            are held in memory (256 lanes of 64 records of 15 kB: 500 MB per corpus, over all
            processes).
    """

    corpora: tuple[CorpusConfig, ...] = ()
    concepts: Literal["cluster", "top", "caption", "nouns", "none"] = "cluster"
    prompts: PositiveCount = 3
    prompt_length: Length = 32
    caption_length: Length = CONTEXT_LENGTH
    image_size: PositiveCount = 224
    augment: Literal["none", "crop", "full"] = "full"
    crop_area: tuple[PositiveShare, PositiveShare] = (0.08, 1.0)
    mean: tuple[Share, Share, Share] = IMAGENET_MEAN
    std: tuple[PositiveAmount, PositiveAmount, PositiveAmount] = IMAGENET_STD
    lanes: PositiveCount = 768
    window: PositiveCount = 64

    def __post_init__(self):
        if self.crop_area[0] > self.crop_area[1]:
            raise UserError(
                f"config.data.crop_area={self.crop_area}: give the smallest share first"
            )
        if not self.corpora:
            raise UserError("config.data.corpora is empty; name at least one (directory and split)")


def input_config(data: Mapping) -> InputConfig:
    """Checks the fields of `config.data`.

    Raises:
        UserError: a field is unknown or missing, or has a value that is not allowed.
    """
    return read_settings(InputConfig, data, "config.data")
