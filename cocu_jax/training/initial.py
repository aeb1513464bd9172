"""The initial state of a run: random weights, or those of another model (`config.init_from`)."""

import dataclasses
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIPConfig
from cocu_jax.models.groupvit import GroupViTConfig
from cocu_jax.models.weights.checkpoint import open_checkpoint
from cocu_jax.training.plan import Plan
from cocu_jax.training.state import Arrays, TrainState, split_model

# Settings that change what a model computes but not the shape of any array.
_SHAPELESS = (
    "heads",
    "vision_heads",
    "activation",
    "layer_norm_eps",
    "assign_logit_scale",
    "text.heads",
    "text.activation",
    "text.layer_norm_eps",
)
_LISTED = 5  # names of each kind of difference that a message lists


class Differences(NamedTuple):
    """How a model differs from the one that a run trains; the fields are lists for messages.

    Attributes:
        missing: arrays that only the run's model has.
        extra: arrays that only the other model has.
        reshaped: arrays of different shapes.
        settings: settings of different values.
    """

    missing: list[str]
    extra: list[str]
    reshaped: list[str]
    settings: list[str]

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "extra": self.extra,
            "of another shape": self.reshaped,
            "other settings": self.settings,
        }
        return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)


def initial_state(plan: Plan, init_from: str, init_partial: bool) -> TrainState:
    """The state before the first step; the optimiser's state and the step are always new.

    Arguments and errors as `initial_arrays`; UserError also if the processes have read different
    weights.
    """
    arrays = initial_arrays(plan, init_from, init_partial)
    if not arrays:
        return plan.init()
    _check_same_everywhere(init_from, arrays)
    return _with_arrays(plan, arrays)


def initial_arrays(plan: Plan, init_from: str, init_partial: bool) -> Arrays:
    """Parameters and statistics of another model to initialise a run with, by path, on this host.

    Args:
        plan: plan of the run.
        init_from: any checkpoint that `open_checkpoint` reads; "" for none.
        init_partial: take the arrays that fit and leave the others random; otherwise all must fit.

    Raises:
        UserError: there is no such model, or it does not fit.
    """
    if not init_from:
        return {}
    model = open_checkpoint(init_from).model
    _, params, stats = split_model(model)
    theirs = params | stats
    ours = plan.shapes.params | plan.shapes.batch_stats
    found = differences(theirs, ours, model.config, plan.objective.model_config)
    if any(found) and not init_partial:
        raise UserError(
            f"config.init_from={init_from}: not the model that is trained here ({found}); change "
            "config.model accordingly, or take only what fits with --config.init_partial=True"
        )
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in ours and value.shape == ours[name].shape
    }
    if not fitting:
        raise UserError(f"config.init_from={init_from}: nothing in it fits the model trained here")
    if any(found):
        logging.warning("%s: took %d of %d arrays; %s", init_from, len(fitting), len(ours), found)
    return fitting


def differences(
    theirs: Arrays,
    ours: Arrays,
    their_settings: GroupViTConfig | CLIPConfig,
    our_settings: GroupViTConfig | CLIPConfig,
) -> Differences:
    """Compares a model with the one that a run trains: names and shapes of arrays, and settings."""
    reshaped = [
        f"{name} {list(theirs[name].shape)} for {list(ours[name].shape)}"
        for name in sorted(ours.keys() & theirs.keys())
        if theirs[name].shape != ours[name].shape
    ]
    settings = [
        f"{name} {theirs_value} for {our_value}"
        for name in _SHAPELESS
        for theirs_value, our_value in [(_value(their_settings, name), _value(our_settings, name))]
        if theirs_value != our_value
    ]
    missing, extra = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    return Differences(missing, extra, reshaped, settings)


def _check_same_everywhere(init_from: str, arrays: Arrays) -> None:
    """Raises a UserError unless all processes have read the same weights.

    Each process reads them itself. The newest checkpoint of a running job changes meanwhile, and
    local folders of the same name may contain different models on different hosts.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    mine = np.frombuffer(digest.digest(), np.uint32)
    found = multihost_utils.process_allgather(mine)
    if (found != found[0]).any():
        raise UserError(
            f"config.init_from={init_from}: the processes have read different weights; name a "
            "checkpoint that all of them can read; of a running job, one step: RUN@STEP"
        )


def _with_arrays(plan: Plan, arrays: Arrays) -> TrainState:
    """The initial state with some parameters and statistics replaced, sharded by the plan."""
    state = plan.init()

    def placed(old: Arrays, shardings: dict) -> Arrays:
        return {
            name: _place(np.asarray(arrays[name]), old[name].dtype, shardings[name])
            if name in arrays
            else value
            for name, value in old.items()
        }

    params = placed(state.params, plan.shardings.params)
    stats = placed(state.batch_stats, plan.shardings.batch_stats)
    average = state.average and placed(state.average, plan.shardings.average)
    return dataclasses.replace(state, params=params, batch_stats=stats, average=average)


def _place(value: np.ndarray, dtype: jnp.dtype, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts a host array on the run's devices; each process provides its own devices' parts."""
    value = value.astype(dtype)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _value(settings: GroupViTConfig | CLIPConfig, name: str):
    for part in name.split("."):
        settings = getattr(settings, part, None)
    return settings


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
