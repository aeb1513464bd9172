"""Imports TensorFlow, which only reads data on the host, without its messages.

Import this module before any other that imports TensorFlow.
"""

import os

from cocu_jax.quiet import quiet_libraries

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault(
    "TF_ENABLE_ONEDNN_OPTS", "0"
)  # not needed by tf.data; it prints long messages

with quiet_libraries():
    import tensorflow as tf


def keep_off_accelerators() -> None:
    """Hides the accelerators from TensorFlow, which would otherwise allocate all memory of a GPU.

    Has no effect once TensorFlow has started its devices.
    """
    with quiet_libraries():
        for kind in ("GPU", "TPU"):
            try:
                tf.config.set_visible_devices([], kind)
            except RuntimeError:  # it has started
                return
