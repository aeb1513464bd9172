"""The same bits from the same program on GPUs, too."""

import os

from cocu_jax.errors import UserError

# XLA's, read once when JAX starts: no kernels that add in any order (cuDNN's backward passes,
# scatter-add), and none chosen by a stopwatch. TPUs and CPUs compute the same bits without it.
DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"


def check_deterministic(wanted: bool) -> None:
    """Checks that JAX was started as `wanted`, where that makes a difference.

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
