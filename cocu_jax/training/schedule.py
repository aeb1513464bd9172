"""The learning rate over a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cocu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine whose argument counts the warm-up steps too.

    GroupViT's schedule (Xu et al., 2022, section 4.1): the cosine runs over the whole training and
    the warm-up replaces its beginning, so the rate jumps a little where the two meet.

    Attributes:
        peak: rate of the cosine at step 0, which the warm-up climbs towards.
        start: rate of step 0.
        end: rate the cosine reaches at `total_steps`.
        warmup_steps: steps before the cosine takes over.
        total_steps: steps of the run.
    """

    peak: float
    start: float
    end: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self):
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise UserError(
                f"warm-up of {self.warmup_steps} steps in a run of {self.total_steps}; "
                "shorten config.warmup or train longer"
            )

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The rate of one step, counted from 0."""
        step = jnp.asarray(step, jnp.float32)
        warm = self.start + (self.peak - self.start) * step / max(self.warmup_steps, 1)
        # (1 + cos x) / 2 = sin((pi - x) / 2)^2, which does not cancel towards the end of the run.
        left = (self.total_steps - step) / max(self.total_steps, 1)
        wave = jnp.square(jnp.sin(left * (np.pi / 2)))
        cosine = self.end + (self.peak - self.end) * wave
        return jax.lax.select(step < self.warmup_steps, warm, cosine)


def schedule_from(config, total_steps: int, steps_per_epoch: float) -> Schedule:
    """The schedule of a train config; rates are scaled by batch_size / reference_batch.

    Args:
        config: `learning_rate`, `start_learning_rate`, `end_learning_rate`, `reference_batch`,
            `batch_size`, and `warmup_steps` or (where that is 0) `warmup_epochs`.
        total_steps: steps of the run.
        steps_per_epoch: steps that pass over the data once.
    """
    factor = config.batch_size / config.reference_batch
    return Schedule(
        peak=config.learning_rate * factor,
        start=config.start_learning_rate * factor,
        end=config.end_learning_rate * factor,
        warmup_steps=config.warmup_steps or round(config.warmup_epochs * steps_per_epoch),
        total_steps=total_steps,
    )
