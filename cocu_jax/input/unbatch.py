"""Splits a dataset of batches into examples."""

import tensorflow as tf


def unbatch(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The examples of the batches, in order: a replacement for `Dataset.unbatch`.

    TensorFlow 2.21's `unbatch` ends the process with a segmentation fault where a component is a
    numeric tensor of shape [n, 0], such as the concepts of n captions that name none.
    `from_tensor_slices` handles that case and takes no longer.

    Args:
        batches: a dataset of dense components that have the same first dimension.
    """

    def slices(*components):
        return tf.data.Dataset.from_tensor_slices(
            components if len(components) > 1 else components[0]
        )

    return batches.flat_map(slices)
