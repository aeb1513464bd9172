"""What a run writes down about itself: TensorBoard events and `metrics.jsonl`, in the background.

Steps hand over arrays that the device has not computed yet. A thread waits for them, so the loop
never does.
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

# Noisy from step to step: the mean since the last line is written. Of the others, the last value.
_AVERAGED = ("loss/", "gradient_norm", "group_entropy/")


class MetricsLog:
    """Writes the metrics of a run, one line per interval.

    Args:
        directory: TensorBoard events and `metrics.jsonl` go there.
        first_step: where the run goes on; later lines of an earlier attempt are dropped.
        writes: whether this process writes (process 0); the others only summarise.
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
        """Takes the metrics of one step, finished or not."""
        self._pending.append(metrics)

    def write(self, step: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Hands everything added since the last call to the thread.

        Args:
            step: steps done.
            extra: figures of the interval that the host measured.

        Returns:
            The line before this one, as `latest` does. Raises what writing it raised.
        """
        before = self.latest()
        taken, self._pending = self._pending, []
        self._last = self._thread.submit(self._write, step, taken, dict(extra))
        return before

    def write_now(self, step: int, scalars: Mapping[str, float], images: Mapping) -> None:
        """Writes figures that are at hand, such as those of an evaluation, and pictures.

        Args:
            step: steps done.
            scalars: figures.
            images: pictures by name, uint8 [n, h, w, 3].
        """
        self.latest()
        self._thread.submit(self._put, step, dict(scalars), images).result()

    def latest(self) -> dict[str, float]:
        """Waits for the newest line of `write`, an earlier attempt's too; empty before any."""
        return self._last.result() if self._last else self._before

    def close(self) -> None:
        """Writes what is left and closes the files."""
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
    """Lines of a run's `metrics.jsonl`, a broken last one left out; none if there is no file."""
    file = epath.Path(directory) / METRICS_FILE
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _summarise(steps: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """One figure per name; steps that were skipped do not count in means."""
    summary = {}
    for name in steps[-1] if steps else ():
        values = np.array([metrics[name] for metrics in steps], np.float64)
        if name.startswith(_AVERAGED):
            values = values[np.isfinite(values)]
            summary[name] = float(values.mean()) if len(values) else math.nan
        else:
            summary[name] = float(values[-1])
    return summary
