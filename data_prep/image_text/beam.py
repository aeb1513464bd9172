"""Preparing units with Apache Beam: here in several processes, or wherever its runners run."""

import threading
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest
from data_prep.image_text.readers import Unit
from data_prep.image_text.units import Recipe, UnitPreparer, shard_files

_POLL_SECONDS = 0.5
_STOP_FILE = "stop"


class _Prepare(beam.DoFn):
    """Prepares the units it is given, until the stop file appears."""

    def __init__(self, recipe: Recipe, scratch: str) -> None:
        self._recipe = recipe
        self._scratch = scratch

    def setup(self) -> None:
        self._preparer = UnitPreparer(self._recipe)

    def process(self, element: tuple[int, Unit]):
        number, unit = element
        scratch = epath.Path(self._scratch)
        if not (scratch / _STOP_FILE).exists():
            self._preparer.prepare(unit, unit_target(scratch, number))


def unit_target(scratch: epath.Path, number: int) -> epath.Path:
    """Where the files of a unit go, without their endings."""
    return scratch / f"unit-{number:05d}"


def prepare_units(
    units: Sequence[Unit],
    recipe: Recipe,
    scratch: epath.Path,
    workers: int,
    beam_options: list[str],
) -> None:
    """Prepares all units that are not prepared yet, with a bar that counts them.

    Only names of units go through Beam, never pairs, so that no runner holds images in memory.

    Args:
        units: what is to be prepared.
        recipe: how.
        scratch: where the results go; all workers must reach it.
        workers: processes on this machine; 1 stays in this one.
        beam_options: Beam's own flags, e.g. `["--runner=DataflowRunner", "--project=…"]`; when they
            name a runner, `workers` is its business.

    Raises:
        Stopped: an interrupt was requested; finished units are kept.
        UserError: the pipeline failed.
    """
    stop_file = scratch / _STOP_FILE
    stop_file.unlink(missing_ok=True)
    finished = _Finished(scratch, len(units))
    todo = [(number, unit) for number, unit in enumerate(units) if number not in finished.numbers]
    if not todo:
        return
    runner, options = _runner(min(workers, len(todo)), beam_options)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            pipeline = beam.Pipeline(runner=runner, options=options)
            named = pipeline | beam.Create(todo) | beam.Reshuffle()
            named | beam.ParDo(_Prepare(recipe, str(scratch)))
            pipeline.run().wait_until_finish()
        except BaseException as error:  # told by the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    done = len(units) - len(todo)
    with StopRequest() as stop, progress_bar("Preparing", len(units), "files", done) as bar:
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            bar.update(finished.look())
            if stop.requested and not stop_file.exists():
                stop_file.touch()
        bar.update(finished.look())
    if stop.requested:
        raise Stopped(
            f"stopped after {len(finished.numbers)} of {len(units)} files; "
            "run the same command to go on"
        )
    if failures:
        reason = str(failures[0]).strip().splitlines()[-1:] or [type(failures[0]).__name__]
        raise UserError(
            f"preparing stopped: {reason[0]}; correct that and run the same command to go on"
        ) from failures[0]


class _Finished:
    """Which units are there, seen from the files, because runners do not tell."""

    def __init__(self, scratch: epath.Path, count: int) -> None:
        self._targets = [unit_target(scratch, number) for number in range(count)]
        self.numbers: set[int] = set()
        self.look()

    def look(self) -> int:
        """Looks again and tells how many have been finished since."""
        new = {
            number
            for number, target in enumerate(self._targets)
            if number not in self.numbers
            and all(path.exists() for path in reversed(shard_files(target)))
        }
        self.numbers |= new
        return len(new)


def _runner(workers: int, beam_options: list[str]) -> tuple[object, PipelineOptions]:
    if any(option.startswith("--runner") for option in beam_options):
        return None, PipelineOptions(beam_options)
    mode = "in_memory" if workers == 1 else "multi_processing"
    flags = [f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"]
    # By its class: the name DirectRunner first tries to download another runner.
    return FnApiRunner(), PipelineOptions([*beam_options, *flags])
