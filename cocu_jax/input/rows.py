"""Batches taken apart into their rows."""

import tensorflow as tf


def rows_of(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The rows of batches, one after the other; what `Dataset.unbatch` would give.

    TensorFlow 2.21's `unbatch` ends the process with a segmentation fault where a component is a
    numeric tensor of shape [n, 0], such as the concepts of n captions that name none. Slices have
    no such case and take no longer.

    Args:
        batches: a dataset whose components, dense, agree in their first dimension.
    """

    def slices(*components):
        return tf.data.Dataset.from_tensor_slices(
            components if len(components) > 1 else components[0]
        )

    return batches.flat_map(slices)
