"""TensorFlow as the reader of data on the host: imported without its notes, and off accelerators.

Import this module before any other that imports TensorFlow.
"""

import os

from cocu_jax.quiet import quiet_libraries

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of no use to tf.data, and announced at length

with quiet_libraries():
    import tensorflow as tf


def keep_off_accelerators() -> None:
    """Leaves the accelerators to JAX: TensorFlow would take all the memory of a GPU for itself.

    Has no effect once TensorFlow has started its devices.
    """
    with quiet_libraries():
        for kind in ("GPU", "TPU"):
            try:
                tf.config.set_visible_devices([], kind)
            except RuntimeError:  # it has started
                return
