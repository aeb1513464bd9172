"""Turns a config into the functions and shapes of a run, without reading data or using devices."""

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
    """A run as pure functions, with shapes and shardings.

    Attributes:
        objective: model and loss.
        schedule: learning rate.
        mesh: devices.
        total_steps: number of steps of the run.
        shapes: shapes and types of the train state.
        shardings: shardings of the train state.
        init: () -> the state before the first step; jitted.
        step: (state, batch) -> state, metrics; jitted, the old state is donated.
        flops: FLOPs of the matrix products of a step, see `flops.step_flops`.
        attention: the attention that GPUs run, as `agree_on_attention` describes it.
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
        """Shapes with shardings, which a checkpoint is restored to."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )


def make_plan(config, examples: int, devices=None) -> Plan:
    """Plans the run of a train config.

    Args:
        config: see `configs/cocu.py`.
        examples: number of image-text pairs in an epoch.
        devices: default: all.

    Raises:
        UserError: fields of the config contradict each other or the number of devices.
    """
    steps_per_epoch = examples / config.batch_size
    total_steps = config.total_steps or round(config.epochs * steps_per_epoch)
    if not total_steps:
        raise UserError(
            f"config.epochs={config.epochs}: less than one step with {examples} examples and "
            f"config.batch_size={config.batch_size}; train longer or set config.total_steps"
        )
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.batch_size, devices)
    per_device = config.batch_size // mesh.size
    if per_device % config.accumulate:
        raise UserError(
            f"config.accumulate={config.accumulate}: it must divide the {per_device} examples of a "
            f"device (config.batch_size={config.batch_size} over {mesh.size} devices)"
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
    # Between slices the network would transfer parameters, which are larger than their gradients.
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
        flops=step_flops(objective.model_config, config.batch_size, tuple(lengths)),
        attention=attention,
    )


def batch_shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the global batch that `train_batches` gives for a config (no keys)."""
    data = config.data

    def batch_of(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)

    shapes = {
        "image": batch_of(jnp.uint8, data.image_size, data.image_size, 3),
        "caption": batch_of(jnp.int32, data.caption_length),
        "noise": batch_of(jnp.uint32, 2),
    }
    if data.concepts != "none":
        shapes["prompts"] = batch_of(jnp.int32, data.prompts, data.prompt_length)
    return shapes
