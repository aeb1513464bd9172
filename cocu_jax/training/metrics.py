"""The log of a run: TensorBoard events and `metrics.jsonl`, written in the background.

A step returns its metrics before the device has computed them. A thread waits for the values, so
the training loop does not have to.
"""

import concurrent.futures
import json
import math
from collections.abc import Mapping

import jax
import numpy as np
from clu import metric_writers
from etils import epath

from cocu_jax.files import write_file

METRICS_FILE = "metrics.jsonl"

# Noisy from step to step, so the mean since the last line is written; of all others the last value.
_AVERAGED = ("loss/", "gradient_norm", "group_entropy/")


class MetricsLog:
    """Writes the metrics of a run, one line per interval.

    Args:
        directory: where TensorBoard events and `metrics.jsonl` are written.
        first_step: step from which the run continues; later lines of an earlier attempt are
            removed.
        writes: whether this process writes files (process 0 does); the others only summarise.
    """

    def __init__(self, directory: epath.Path, first_step: int, writes: bool):
        self._file = directory / METRICS_FILE
        self._pending: list[Mapping[str, jax.Array]] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "metrics")
        self._last: concurrent.futures.Future | None = None
        self._events = None
        kept = [line for line in read_metrics(directory) if line["step"] <= first_step]
        self._before = next((line for line in reversed(kept) if "loss/total" in line), {})
        if writes:
            self._events = metric_writers.SummaryWriter(str(directory))
            write_file(self._file, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of one step, which need not be computed yet."""
        self._pending.append(metrics)

    def write(self, step: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Summarises and writes, in the background, everything added since the last call.

        Args:
            step: steps done.
            extra: figures of the interval that were measured on the host.

        Returns:
            The line before this one, see `latest`; an error in writing that line is raised here.
        """
        before = self.latest()
        taken, self._pending = self._pending, []
        self._last = self._thread.submit(self._write, step, taken, dict(extra))
        return before

    def write_now(self, step: int, scalars: Mapping[str, float], images: Mapping) -> None:
        """Writes figures that are already computed, such as those of an evaluation, and pictures.

        Args:
            step: steps done.
            scalars: figures.
            images: pictures by name, uint8 [n, h, w, 3].
        """
        self.latest()
        self._thread.submit(self._put, step, dict(scalars), images).result()

    def latest(self) -> dict[str, float]:
        """Waits for the newest line of `write` and returns it.

        Without one, the last such line of an earlier attempt, or an empty dictionary.
        """
        return self._last.result() if self._last else self._before

    def close(self) -> None:
        """Finishes writing and closes the files."""
        self._thread.shutdown()
        if self._events:
            self._events.close()

    def _write(self, step: int, taken: list, extra: dict[str, float]) -> dict[str, float]:
        line = _summarise(jax.device_get(taken)) | extra
        self._put(step, line, {})
        return {"step": step} | line

    def _put(self, step: int, scalars: dict[str, float], images: dict) -> None:
        if not self._events:
            return
        self._events.write_scalars(step, scalars)
        if images:
            self._events.write_images(step, images)
        self._events.flush()
        finite = {name: v if math.isfinite(v) else None for name, v in scalars.items()}
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step} | finite) + "\n")


def read_metrics(directory: epath.PathLike) -> list[dict[str, float]]:
    """Lines of a run's `metrics.jsonl` up to the first incomplete one; none if there is no file."""
    file = epath.Path(directory) / METRICS_FILE
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _summarise(steps: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """One figure per name; means leave out steps that were skipped."""
    summary = {}
    for name in steps[-1] if steps else ():
        values = np.array([metrics[name] for metrics in steps], np.float64)
        if name.startswith(_AVERAGED):
            values = values[np.isfinite(values)]
            summary[name] = float(values.mean()) if len(values) else math.nan
        else:
            summary[name] = float(values[-1])
    return summary
