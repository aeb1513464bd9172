"""Bit-identical results of repeated runs on GPUs."""

import os

from cocu_jax.errors import UserError

# A flag of XLA, read once when JAX starts. It excludes kernels that add in an undefined order (such
# as cuDNN's backward passes and scatter-add) and the choice of kernels by timing. TPUs and CPUs are
# deterministic without it.
DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"


def check_deterministic(wanted: bool) -> None:
    """Checks, where the platform requires it, that JAX was started with the flag if `wanted`.

    Raises:
        UserError: it runs on GPUs and was started without the flag.
    """
    import jax  # starts only when the flag is set

    if wanted and jax.default_backend() == "gpu":
        if DETERMINISTIC_FLAG not in os.environ.get("XLA_FLAGS", "").split():
            raise UserError(
                "config.deterministic: JAX has already started without it; start the run with "
                f"main.py, or with XLA_FLAGS={DETERMINISTIC_FLAG}"
            )
