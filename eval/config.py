"""Types and limits of the fields of an evaluation's config; `configs/evaluate.py` explains them."""

import dataclasses
from typing import Literal

import ml_collections

from cocu_jax.settings import Count, Flag, PositiveCount, Share, only_its_fields, read_settings
from eval.presets import PRESETS
from eval.protocol import DENSE, MODES, TEMPLATE_SETS


@only_its_fields
@dataclasses.dataclass(frozen=True)
class CustomConfig:
    """Settings for directories of one's own datasets."""

    split: str
    crop: PositiveCount
    stride: PositiveCount
    resize_long_short: tuple[PositiveCount, PositiveCount] | None
    bg_thresh: Share


@only_its_fields
@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The config of an evaluation."""

    job: Literal["evaluate"]
    checkpoint: str
    benchmarks: str
    data_dir: str
    protocol: Literal[PRESETS]
    dense: Literal["", *DENSE]
    pamr: Flag
    mode: Literal["", *MODES]
    bg_thresh: Share | None
    templates: Literal["", *TEMPLATE_SETS]
    softmax: Flag | None
    classification_templates: Literal[TEMPLATE_SETS]
    class_names: str
    dtype: Literal["float32", "bfloat16"]
    limit: Count
    images_per_device: Count
    windows_per_forward: Count
    pictures: Count
    save_predictions: Flag
    custom: CustomConfig


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks every field of the config of an evaluation, before anything is opened.

    Raises:
        UserError: a field is missing, unknown, or has a value that is not allowed.
    """
    fields = {name: config[name] for name in config}
    custom = {name: config.custom[name] for name in config.custom}
    if custom.get("resize_long_short") in ((), []):  # images are not resized
        custom["resize_long_short"] = None
    read_settings(EvaluateConfig, fields | {"custom": custom}, "config")
