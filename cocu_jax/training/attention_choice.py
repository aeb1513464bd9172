"""Decides where a run uses cuDNN's attention, once for all of its processes.

If every process decided on its own, a temporary failure on one host would leave the processes with
different programs, and their collectives would wait for each other forever.
"""

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental import multihost_utils

from cocu_jax.models.attention import choose_cudnn, cudnn_compiles
from cocu_jax.models.keys import Keys
from cocu_jax.training.objective import Batch, Features, Metrics, Objective


def agree_on_attention(objective: Objective, batch: Batch) -> tuple[Objective, str]:
    """Fixes for every shape of attention whether an objective uses cuDNN's or XLA's.

    On GPUs process 0 compiles cuDNN's attention for every shape that occurs in the towers; where
    that succeeds, all processes use it. On other devices it is always XLA's.

    Args:
        objective: model and loss.
        batch: shapes of a batch of any size.

    Returns:
        The objective, and a description of its attention: "cuDNN's", "XLA's", or for how many
        shapes it is cuDNN's.
    """
    if jax.default_backend() != "gpu":
        return objective, "XLA's"
    shapes = sorted(_attention_shapes(objective, batch))
    first = jax.process_index() == 0
    answers = np.array([first and cudnn_compiles(*shape) for shape in shapes], bool)
    if jax.process_count() > 1:
        answers = multihost_utils.broadcast_one_to_all(answers)
    chosen = {shape for shape, answer in zip(shapes, answers, strict=True) if answer}
    name = {len(shapes): "cuDNN's", 0: "XLA's"}.get(
        len(chosen), f"cuDNN's for {len(chosen)} of {len(shapes)} shapes, XLA's for the others"
    )
    logging.info("attention of the train step: %s, on all processes", name)

    def features(model: nnx.Module, batch: Batch) -> tuple[Features, Metrics]:
        with choose_cudnn(lambda *shape: shape in chosen):
            return objective.features(model, batch)

    return objective._replace(features=features), name


def _attention_shapes(objective: Objective, batch: Batch) -> set[tuple]:
    """The arguments of `cudnn_compiles` for every attention layer of the towers."""
    shapes = set()

    def record(*shape) -> bool:
        shapes.add(shape)
        return False

    def run(batch: Batch):
        return objective.features(objective.build(Keys(0)), batch)

    with choose_cudnn(record):
        jax.eval_shape(run, batch)
    return shapes
