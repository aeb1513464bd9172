"""Random keys: for initialising models, and one for each example of a batch."""

import jax
from jaxtyping import Key, PRNGKeyArray


class Keys:
    """Yields the same keys as `nnx.Rngs(seed)` to a model's constructor, ten times faster to trace.

    `nnx.Rngs` counts its draws in arrays; to construct a model once, a Python integer suffices.
    """

    def __init__(self, seed: int):
        self._key = jax.random.key(seed)
        self._count = 0

    def params(self) -> PRNGKeyArray:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)


def fold_in_each(keys: Key[jax.Array, "b"], data: int) -> Key[jax.Array, "b"]:
    """`jax.random.fold_in` of the same number into every key."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def split_each(keys: Key[jax.Array, "b"]) -> tuple[Key[jax.Array, "b"], Key[jax.Array, "b"]]:
    """`jax.random.split` of every key into two; returns all first and all second keys."""
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]
