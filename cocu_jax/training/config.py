"""The fields of a train config: types and limits. `configs/cocu.py` explains and sets them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import ml_collections
import pydantic

from cocu_jax.errors import UserError
from cocu_jax.input.config import InputConfig, input_config
from cocu_jax.models.clip import CLIPConfig
from cocu_jax.models.groupvit import GroupViTConfig
from cocu_jax.settings import (
    Amount,
    Count,
    Flag,
    PositiveAmount,
    PositiveCount,
    ShareBelowOne,
    Whole,
    only_its_fields,
    read_settings,
)
from cocu_jax.training.evaluation import evaluation_settings
from cocu_jax.training.model_settings import model_settings


@only_its_fields
@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes; `data=-1` stands for the number of devices / `fsdp`.

    `split_update` is that of `StepSettings`; it has no effect on several slices.
    """

    data: Annotated[Whole, pydantic.Field(ge=-1)]
    fsdp: PositiveCount
    split_update: Flag


@only_its_fields
@dataclass(frozen=True)
class TrainConfig:
    """The fields of a train config. `data`, `model` and `evaluation` are checked on their own."""

    job: Literal["train"]
    objective: Literal["groupvit", "clip"]
    seed: Count
    data: dict[str, Any]
    model: dict[str, Any]
    batch_size: PositiveCount
    epochs: Amount
    total_steps: Count
    reference_batch: PositiveCount
    learning_rate: PositiveAmount
    start_learning_rate: Amount
    end_learning_rate: Amount
    warmup_epochs: Amount
    warmup_steps: Count
    weight_decay: Amount
    decay_temperatures: Flag
    betas: tuple[ShareBelowOne, ShareBelowOne]
    adam_eps: PositiveAmount
    clip_norm: PositiveAmount
    ema_decay: ShareBelowOne
    accumulate: PositiveCount
    tuned: Flag
    nonfinite_limit: PositiveCount
    init_from: str
    init_partial: Flag
    mesh: MeshConfig
    log_every: PositiveCount
    checkpoint_every: Count
    checkpoint_minutes: Amount
    keep: PositiveCount
    eval_every: Count
    evaluation: Any
    profile_at: Count
    profile_steps: PositiveCount
    compile_cache: str
    deterministic: Flag
    export: Flag
    data_root: str = ""


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks every field of a train config, before anything is opened.

    Raises:
        UserError: a field is missing or unknown, or its value is not allowed or contradicts that of
            another field.
    """
    settings = read_settings(TrainConfig, config, "config")
    data = input_config(config.data)
    model = model_settings(config)
    evaluation_settings(config)
    if not settings.mesh.data:
        raise UserError("config.mesh.data=0: it must be greater than or equal to 1, or -1")
    if not settings.total_steps and not settings.epochs:
        raise UserError("config.total_steps=0 and config.epochs=0: one of them must be positive")
    _check_lengths(data, model)


def _check_lengths(data: InputConfig, model: GroupViTConfig | CLIPConfig) -> None:
    lengths = {"caption_length": data.caption_length}
    if data.concepts != "none":
        lengths["prompt_length"] = data.prompt_length
    for name, length in lengths.items():
        if length > model.text.context_length:
            raise UserError(
                f"config.data.{name}={length}: it must be at most config.model.text."
                f"context_length={model.text.context_length}"
            )
    if data.image_size % model.patch_size:
        raise UserError(
            f"config.data.image_size={data.image_size}: it must be a multiple of "
            f"config.model.patch_size={model.patch_size}"
        )
