"""From a config to the pieces of a run, without touching data or devices' memory."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cocu_jax.errors import UserError
from cocu_jax.training.attention_choice import agree_on_attention
from cocu_jax.training.flops import step_flops
from cocu_jax.training.mesh import count_slices, make_mesh
from cocu_jax.training.objective import Batch, Metrics, Objective, make_objective
from cocu_jax.training.optimizer import make_optimizer
from cocu_jax.training.schedule import Schedule, schedule_from
from cocu_jax.training.state import TrainState, create_state
from cocu_jax.training.step import StepSettings, compile_step, make_train_step, place_state


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run as pure functions, shapes and places.

    Attributes:
        objective: model and loss.
        schedule: learning rate.
        mesh: devices.
        total_steps: length of the run.
        shapes: of the train state.
        shardings: of the train state.
        init: () -> the state before the first step; jitted.
        step: (state, batch) -> state, metrics; jitted, the old state is donated.
        flops: matrix-product operations of a step, counted by hand.
        attention: whose attention GPUs run, see `agree_on_attention`.
    """

    objective: Objective
    schedule: Schedule
    mesh: Mesh
    total_steps: int
    shapes: TrainState
    shardings: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    flops: float
    attention: str

    def targets(self) -> TrainState:
        """Shapes with shardings: what a checkpoint is restored to."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.shapes,
            self.shardings,
        )


def make_plan(config, examples: int, devices=None) -> Plan:
    """Plans the run of a train config.

    Args:
        config: see `configs/cocu.py`.
        examples: image-text pairs of an epoch.
        devices: default all.

    Raises:
        UserError: the config is contradictory.
    """
    steps_per_epoch = examples / config.batch_size
    total_steps = config.total_steps or round(config.epochs * steps_per_epoch)
    if not total_steps:
        raise UserError(
            f"config.epochs={config.epochs}: less than a step with {examples} examples and "
            f"config.batch_size={config.batch_size}; train longer or set config.total_steps"
        )
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.batch_size, devices)
    rows = config.batch_size // mesh.size
    if rows % config.accumulate:
        raise UserError(
            f"config.accumulate={config.accumulate}: it must divide the {rows} rows of a device "
            f"(config.batch_size={config.batch_size} over {mesh.size} devices)"
        )
    objective = make_objective(config, mesh.devices.flat[0].device_kind)
    objective, attention = agree_on_attention(objective, batch_shapes(config))
    schedule = schedule_from(config, total_steps, steps_per_epoch)
    optimizer = make_optimizer(
        schedule,
        config.weight_decay,
        config.clip_norm,
        config.decay_temperatures,
        betas=tuple(config.betas),
        eps=config.adam_eps,
    )
    create = functools.partial(
        create_state, objective.build, optimizer, config.seed, bool(config.ema_decay)
    )
    shapes = jax.eval_shape(create)
    # Between slices the network would carry parameters, which are larger than their gradients.
    split = config.mesh.split_update and count_slices(mesh.devices.flat) == 1
    settings = StepSettings(config.accumulate, config.ema_decay, split)
    shardings = place_state(mesh, shapes, settings)
    step = make_train_step(objective, optimizer, schedule, settings, mesh)
    lengths = [config.data.caption_length]
    if config.data.concepts != "none":
        lengths += [config.data.prompt_length] * config.data.prompts
    return Plan(
        objective=objective,
        schedule=schedule,
        mesh=mesh,
        total_steps=total_steps,
        shapes=shapes,
        shardings=shardings,
        init=jax.jit(create, out_shardings=shardings),
        step=compile_step(step, mesh, shardings),
        flops=step_flops(objective.settings, config.batch_size, tuple(lengths)),
        attention=attention,
    )


def batch_shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    """What `train_batches` gives for a train config, without the keys."""
    data = config.data

    def rows(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)

    shapes = {
        "image": rows(jnp.uint8, data.image_size, data.image_size, 3),
        "caption": rows(jnp.int32, data.caption_length),
        "noise": rows(jnp.uint32, 2),
    }
    if data.concepts != "none":
        shapes["prompts"] = rows(jnp.int32, data.prompts, data.prompt_length)
    return shapes
