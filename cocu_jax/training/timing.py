"""Measures where the time of a run is spent: rates for the log, and a profile on request."""

import contextlib
import time
from collections.abc import Iterator

import jax
from etils import epath

from cocu_jax.training.hardware import chip_of
from cocu_jax.training.plan import Plan


class Clock:
    """Measures consecutive intervals of training."""

    def __init__(self):
        self._begin()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager: the time inside is counted as waiting for input."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager: the time inside (evaluation, checkpoints) is left out of the rates."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def step(self) -> None:
        """Counts a step."""
        self._steps += 1

    def rates(self, batch_size: int, plan: Plan) -> dict[str, float]:
        """Figures of the interval since the last call; starts a new interval.

        Returns:
            `images_per_second` (of all devices together), `input_wait` (share of the time, from 0
            to 1) and, if the peak of the devices is known, `mfu`: model FLOP/s divided by that
            peak.
        """
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        figures = {
            "images_per_second": self._steps * batch_size / seconds,
            "input_wait": self._waited / seconds,
        }
        if chip := chip_of(plan.mesh.devices.flat[0].device_kind):
            figures["mfu"] = self._steps * plan.flops / seconds / (chip.flops * plan.mesh.size)
        self._begin()
        return figures

    def _begin(self) -> None:
        self._start = time.perf_counter()
        self._waited = self._paused = 0.0
        self._steps = 0


class Profile:
    """Context manager: traces a few steps for TensorBoard's profile tab or Perfetto.

    A run that starts or ends within the steps to be traced traces the steps it runs.

    Args:
        directory: directory of the run; the trace is written to `plugins/profile` below it.
        first: first step to trace; 0: no profile.
        steps: number of steps to trace.
    """

    def __init__(self, directory: epath.Path, first: int, steps: int):
        self._directory = directory
        self._steps = range(first, first + steps) if first else range(0)
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call before a step is dispatched."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, results) -> None:
        """Call after a step is dispatched; after the last traced step it waits for `results`."""
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
