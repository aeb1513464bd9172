"""The learning-rate schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cocu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine decay.

    GroupViT's schedule (Xu et al., 2022, section 4.1): the cosine extends over the whole run and
    the warm-up replaces its beginning, so there is a small jump between the two.

    Attributes:
        peak: rate of the cosine at step 0, and of the warm-up at `warmup_steps`.
        start: rate at step 0.
        end: rate of the cosine at `total_steps`.
        warmup_steps: number of steps of the warm-up.
        total_steps: number of steps of the run.
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
        """The learning rate of a step, counted from 0."""
        step = jnp.asarray(step, jnp.float32)
        warm = self.start + (self.peak - self.start) * step / max(self.warmup_steps, 1)
        # (1 + cos x) / 2 = sin((pi - x) / 2)^2, without cancellation near the end of the run.
        left = (self.total_steps - step) / max(self.total_steps, 1)
        wave = jnp.square(jnp.sin(left * (np.pi / 2)))
        cosine = self.end + (self.peak - self.end) * wave
        return jax.lax.select(step < self.warmup_steps, warm, cosine)


def schedule_from(config, total_steps: int, steps_per_epoch: float) -> Schedule:
    """The schedule of a train config; rates are multiplied by batch_size / reference_batch.

    Args:
        config: `learning_rate`, `start_learning_rate`, `end_learning_rate`, `reference_batch`,
            `batch_size`, and `warmup_steps` or, if that is 0, `warmup_epochs`.
        total_steps: number of steps of the run.
        steps_per_epoch: number of steps of one pass over the data.
    """
    factor = config.batch_size / config.reference_batch
    return Schedule(
        peak=config.learning_rate * factor,
        start=config.start_learning_rate * factor,
        end=config.end_learning_rate * factor,
        warmup_steps=config.warmup_steps or round(config.warmup_epochs * steps_per_epoch),
        total_steps=total_steps,
    )
