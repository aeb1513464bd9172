"""Models with weights drawn by NumPy; compiling initialisers takes longer than most tests."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cocu_jax.models.keys import Keys


def draw_weights(build: Callable[[Keys], nnx.Module], seed: int = 0) -> nnx.Module:
    """Builds a model with weights large enough that patches and groups differ."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jnp.ndarray:
        name = jax.tree_util.keystr(path)
        noise = rng.normal(size=leaf.shape)
        if "scale" in name or "var" in name:
            value = np.full(leaf.shape, 2.66 if "log" in name else 1.0)
        elif "group_tokens" in name:
            value = 2 * noise
        elif "kernel" in name or "embedding" in name:
            value = (0.5 if "assign" in name else 0.3) * noise
        else:
            value = 0.1 * noise
        return jnp.asarray(value.astype(leaf.dtype))

    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(Keys(0))))
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, state))
