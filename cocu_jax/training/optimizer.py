"""AdamW as the recipe sets it up."""

import jax
import optax

from cocu_jax.training.schedule import Schedule


def decay_mask(params: dict[str, jax.Array]) -> dict[str, bool]:
    """Which parameters decay: matrices do; biases, norm scales and temperatures do not."""
    return {name: value.ndim > 1 for name, value in params.items()}


def make_optimizer(
    schedule: Schedule,
    weight_decay: float,
    clip_norm: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then AdamW (Loshchilov and Hutter, 2019).

    Args:
        schedule: learning rate of each update.
        weight_decay: decoupled; multiplied by the learning rate, as PyTorch does.
        clip_norm: largest global norm of the gradient.
        betas: decay of the first and second moment.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule, b1=betas[0], b2=betas[1], eps=1e-8, weight_decay=weight_decay, mask=decay_mask
        ),
    )
