"""Random numbers as functions of their purpose (seed, epoch, key), not of the order of calls.

Every draw of the pipeline is a hash of (seed, epoch, key of the example, purpose, index). So an
example is augmented in the same way in the same epoch, whatever was read before it, on any host,
after any number of restarts.
"""

import tensorflow as tf
from jaxtyping import Float, Int

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def mix(*values: tf.Tensor | int) -> tf.Tensor:
    """Hashes a sequence of integers to a uint64, elementwise (with steps of SplitMix64)."""
    state = tf.constant(0, tf.uint64)
    for value in values:
        state = _scramble(state + tf.cast(value, tf.uint64))
    return state


def example_streams(seed: int, epoch: Int[tf.Tensor, "b"], key: tf.Tensor) -> Int[tf.Tensor, "b"]:
    """One random stream per example: uint64 [b] from seed, epochs [b] and key strings [b]."""
    return mix(seed, epoch, tf.strings.to_hash_bucket_fast(key, 2**63 - 1))


def uniforms(stream: Int[tf.Tensor, "*s"], purpose: int, count) -> Float[tf.Tensor, "*s count"]:
    """Independent draws from [0, 1) with 24 random bits each.

    Args:
        stream: uint64 streams of any shape.
        purpose: a constant that is different for every use of the same streams.
        count: number of draws per stream; a Python integer or a scalar tensor.
    """
    counter = tf.cast(tf.range(count), tf.uint64)
    bits = mix(mix(stream, purpose)[..., None] + counter)
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(40, tf.uint64)), tf.float32) * 2.0**-24


def _scramble(state: tf.Tensor) -> tf.Tensor:
    def fold(value, bits):
        return tf.bitwise.bitwise_xor(
            value, tf.bitwise.right_shift(value, tf.constant(bits, tf.uint64))
        )

    state = state + tf.constant(_GOLDEN, tf.uint64)
    state = fold(state, 30) * tf.constant(_MIX_1, tf.uint64)
    state = fold(state, 27) * tf.constant(_MIX_2, tf.uint64)
    return fold(state, 31)
