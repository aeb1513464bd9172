"""The optimiser of the published recipe: AdamW with gradient clipping."""

import functools

import jax
import optax

from cocu_jax.training.schedule import Schedule


def decay_mask(params: dict[str, jax.Array], temperatures: bool) -> dict[str, bool]:
    """Which parameters are subject to weight decay.

    Arrays of two or more dimensions are; biases and norm scales are not. The log-temperatures,
    which are scalars, are if `temperatures` is set.
    """
    return {
        name: x.ndim > 1 or (temperatures and x.ndim == 0 and not name.endswith("bias"))
        for name, x in params.items()
    }


def make_optimizer(
    schedule: Schedule,
    weight_decay: float,
    clip_norm: float,
    decay_temperatures: bool,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then AdamW (Loshchilov and Hutter, 2019).

    Args:
        schedule: learning rate of each update.
        weight_decay: decoupled weight decay, multiplied by the learning rate as in PyTorch.
        clip_norm: gradients of a larger global norm are scaled down to this norm.
        decay_temperatures: whether the two log-temperatures decay as well. Beyond the clamp of
            their exponential they have no gradient; only decay brings them back.
        betas: decay rates of the first and second moment.
        eps: added to the square root of the second moment.
    """
    mask = functools.partial(decay_mask, temperatures=decay_temperatures)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule, b1=betas[0], b2=betas[1], eps=eps, weight_decay=weight_decay, mask=mask
        ),
    )
