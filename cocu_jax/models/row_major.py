"""Keeps the layout of activations on GPUs row-major, that is, features contiguous in memory."""

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


def row_major(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """`x` unchanged; on CUDA devices it, its gradient, and what is computed from them is row-major.

    XLA chooses layouts backwards from the results. The gradient of a position embedding is a sum
    over the batch, for which XLA makes the batch the contiguous axis, and that layout spreads over
    the whole residual stream. Every layer norm is then computed in it, between two transposes for
    the matrix products.
    """
    return jax.lax.platform_dependent(x, cuda=_constrain, default=lambda x: x)


def _constrain(x: Array) -> Array:
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
