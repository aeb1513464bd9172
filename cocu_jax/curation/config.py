"""The fields of a curation's config: types and limits; `configs/curate.py` explains them."""

from dataclasses import dataclass
from typing import Annotated, Literal

import ml_collections
import pydantic

from cocu_jax.errors import UserError
from cocu_jax.settings import (
    Amount,
    Count,
    Flag,
    PositiveAmount,
    PositiveCount,
    only_its_fields,
    read_settings,
)

PositiveShare = Annotated[PositiveAmount, pydantic.Field(le=1)]


@only_its_fields
@dataclass(frozen=True)
class PartConfig:
    """A split of a corpus, or a part of one; an empty directory is refused later, by its field."""

    directory: str
    split: str = "train"


@only_its_fields
@dataclass(frozen=True)
class CurateConfig:
    """A curation's config."""

    job: Literal["curate"]
    seed: Count
    corpus: PartConfig
    index: tuple[PartConfig, ...]
    clip: str
    prompt: str
    image_embeddings: str
    neighbours: PositiveCount
    search: Literal["exact", "clustered"]
    cells: Count
    cell_recall: PositiveShare
    match: Literal["exact", "substring"]
    capacity: PositiveCount
    clusters: Flag
    dtype: Literal["", "float32", "bfloat16"]
    batch_size: PositiveCount
    search_rows: PositiveCount
    tile_rows: Count
    recall: PositiveShare
    embeddings: str
    staging: str
    staging_gb: Amount
    share: str
    parquet: Flag
    page_images: Count


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks every field of a curation's config, before anything is opened.

    Raises:
        UserError: a field is missing, unknown, or has a value that is not allowed alone or together
            with another.
    """
    settings = read_settings(CurateConfig, config, "config")
    for name, value in {
        "corpus.directory": settings.corpus.directory,
        "clip": settings.clip,
    }.items():
        if not value:
            raise UserError(f"config.{name} is empty; set it with --config.{name}=...")
    if "{}" not in settings.prompt:
        raise UserError(f"config.prompt={settings.prompt!r} has no {{}} for the concept")
    try:
        settings.prompt.format("")
    except (ValueError, LookupError, AttributeError):
        raise UserError(
            f"config.prompt={settings.prompt!r} must have one {{}} and no other braces"
        ) from None
    if settings.search == "clustered" and settings.recall != 1:
        raise UserError(
            f"config.recall={settings.recall} is for config.search='exact'; "
            "set config.cell_recall for the clustered search"
        )
