"""Where the time of a run goes: rates for the log, and a profile on request."""

import contextlib
import time
from collections.abc import Iterator

import jax
from etils import epath

from cocu_jax.training.hardware import chip_of
from cocu_jax.training.plan import Plan


class Clock:
    """Measures one interval after the other."""

    def __init__(self):
        self._begin()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here is waiting for input."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent here (evaluation, checkpoints) is no training time."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def step(self) -> None:
        """Counts a step."""
        self._steps += 1

    def rates(self, batch_size: int, plan: Plan) -> dict[str, float]:
        """Figures since the last call, which begins a new interval.

        Returns:
            `images_per_second` (of all devices), `input_wait` (share of the time) and, where the
            peak of the devices is known, `mfu`: model FLOP/s over that peak.
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
    """Context manager: a trace of a few steps for TensorBoard's profile tab or Perfetto.

    A run that begins or ends inside the steps to be traced traces those that it does.

    Args:
        directory: of the run; the trace goes to `plugins/profile` below it.
        first: step to begin with; 0 takes no profile.
        steps: number of steps.
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
        """Call before a step is given to the devices."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, results) -> None:
        """Call after it; waits for `results` at the end of the trace."""
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
