"""Loss and gradients of a float32 step on the accelerator and on the CPU."""

import contextlib

import jax
import numpy as np

from benchmarks.accelerator.measure import card
from benchmarks.accelerator.step import config_of
from benchmarks.figures import print_figure
from benchmarks.steps import random_batch
from cocu_jax.models.keys import Keys
from cocu_jax.training.gradients import make_gradients
from cocu_jax.training.mesh import make_mesh, put_batch
from cocu_jax.training.objective import make_objective
from cocu_jax.training.state import split_model


def agreement(tiny: bool) -> None:
    """Relative difference of the loss, and of the whole gradient, of one batch of eight.

    Published widths, a block per stage: the CPU takes its time.
    """
    config = config_of(8, tiny, "float32")
    config.model.depths, config.model.text.layers = (1, 1, 1), 2
    objective, batch = make_objective(config), random_batch(config)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        _, params, stats = split_model(objective.build(Keys(0)))
    params, stats = jax.device_get((params, stats))
    results = []
    for device in (cpu, jax.devices()[0]):
        mesh = make_mesh(1, 1, config.batch_size, [device])
        run = jax.jit(make_gradients(objective, 1, mesh))
        with contextlib.nullcontext() if device is cpu else card():
            loss, _, gradients, _ = run(params, stats, put_batch(mesh, batch))
            results.append((float(loss), jax.device_get(gradients)))
    (expected, wanted), (loss, found) = results
    norm = np.linalg.norm
    total = norm([norm(value) for value in wanted.values()])
    difference = norm([norm(found[name] - value) for name, value in wanted.items()])
    error = abs(loss - expected) / abs(expected)
    print_figure("float32 step against the CPU's: loss", error, "relative", 1e-4, "lower")
    error = difference / total
    print_figure("float32 step against the CPU's: gradient", error, "relative", 1e-4, "lower")
