"""Work with Apache Beam: in several processes of this machine, or wherever its runners run."""

from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from etils import epath


class _Do(beam.DoFn):
    """Does the tasks it is given, until the stop file appears."""

    def __init__(self, make: Callable[[], Callable[..., None]], stop_file: str) -> None:
        self._make = make
        self._stop_file = stop_file

    def setup(self) -> None:
        self._do = self._make()

    def process(self, task: tuple):
        if not epath.Path(self._stop_file).exists():
            self._do(*task)


def work_on_beam(
    make: Callable[[], Callable[..., None]],
    tasks: Sequence[tuple],
    stop_file: epath.Path,
    processes: int,
    flags: list[str],
) -> None:
    """Does all tasks.

    Only names of files go through Beam, never pairs, so that no runner holds images in memory.

    Args:
        make: makes the function that does a task, once in every worker.
        tasks: its arguments.
        stop_file: after it has appeared, no task is begun.
        processes: on this machine.
        flags: Beam's own; when they name a runner, `processes` is its business.
    """
    runner, options = _runner(processes, flags)
    pipeline = beam.Pipeline(runner=runner, options=options)
    each = pipeline | beam.Create(tasks) | beam.Reshuffle()
    each | beam.ParDo(_Do(make, str(stop_file)))
    pipeline.run().wait_until_finish()


def _runner(processes: int, flags: list[str]) -> tuple[object, PipelineOptions]:
    if any(flag.startswith("--runner") for flag in flags):
        return None, PipelineOptions(flags)
    here = ["--direct_running_mode=multi_processing", f"--direct_num_workers={processes}"]
    # By its class: the name DirectRunner first tries to download another runner.
    return FnApiRunner(), PipelineOptions([*flags, *here])
