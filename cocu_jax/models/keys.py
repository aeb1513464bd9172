"""Random keys: for building models, and one for each row of a batch."""

import jax
from jaxtyping import Key, PRNGKeyArray


class Keys:
    """Yields the same keys as `nnx.Rngs(seed)` to a model's constructor, ten times faster to trace.

    `nnx.Rngs` counts its draws in arrays; a Python number suffices to build a model in one go.
    """

    def __init__(self, seed: int):
        self._key = jax.random.key(seed)
        self._count = 0

    def params(self) -> PRNGKeyArray:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)


def fold_in_rows(keys: Key[jax.Array, "b"], data: int) -> Key[jax.Array, "b"]:
    """`jax.random.fold_in` of the same number into the key of every row."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def split_rows(keys: Key[jax.Array, "b"]) -> tuple[Key[jax.Array, "b"], Key[jax.Array, "b"]]:
    """Two keys of every row."""
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]
