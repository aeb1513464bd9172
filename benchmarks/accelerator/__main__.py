"""What a GPU makes of the programs, against torch on the same card, within a given time.

    python -m benchmarks.accelerator --seconds 480 [--only step,attention] [--tiny]

Parts, each a process of its own, the telling and cheap ones first (`parts.py`):

    step        the published training step in bfloat16: images/s, utilisation, memory; 256, 512 and
                1024 images, activations kept and recomputed; torch's, compiled, doing the same work
    attention   cuDNN's, XLA's, Triton's through Pallas and torch's kernels: error and time
    agreement   loss and gradients of a float32 step here and on the CPU
    search      exact search of 1,000,000 x 512 float16, and torch's `topk(q @ x.T)`
    embedding   CLIP's image encoders, and torch's, compiled

The first line names card, driver and versions. A figure is printed as soon as it is known; a part
that fails prints a line with its error and those after it go on; a part that the time left does not
suffice for is named. Ratios to torch follow when both figures are there. Compiling takes most of
the time, so on a machine with many cores several parts compile side by side; they measure one after
the other.

Needs jax, flax, optax, numpy, torch, transformers and the small packages that the models import
(pydantic, ml_collections, jaxtyping, ftfy); no TensorFlow. `--tiny` runs every part at a toy size,
on any machine: its figures mean nothing.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from typing import IO

# Torch shares the card, so JAX may not take most of its memory when it starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from benchmarks.accelerator.measure import CARD_LOCK
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.versions import card_and_versions
from benchmarks.figures import print_figure, print_line

_GOALS = {"step": 1.3, "CLIP": 1.2, "search": 1.0}  # ours / torch, by the beginning of a metric

_PROGRAMS = ("", ", kept", ", recomputed", ", large tiles")  # ends of the metrics of ours


def main() -> None:
    """Runs the parts one after the other, or the one that `--part` names in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="time for everything")
    parser.add_argument("--only", default="", help="parts, or beginnings of their names")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument(
        "--side-by-side",
        type=int,
        default=max(1, min(3, len(os.sched_getaffinity(0)) // 5)),
        help="how many parts compile at the same time",
    )
    parser.add_argument("--part", choices=list(PARTS), help="run one part in this process")
    options = parser.parse_args()
    if options.part:
        run_here(options.part, options.tiny)
        return
    if not any(name.startswith(tuple(options.only.split(","))) for name in PARTS):
        parser.error(f"--only {options.only}: none of {', '.join(PARTS)} begins so")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the part that runs, too
    print_line(card_and_versions())
    wanted = [name for name in PARTS if name.startswith(tuple(options.only.split(",")))]
    with tempfile.NamedTemporaryFile() as lock:
        os.environ[CARD_LOCK] = lock.name
        Runner(options.seconds, options.tiny).run(wanted, options.side_by_side)


def run_here(name: str, tiny: bool) -> None:
    """Runs a part in this process; the last line that a failing one leaves says why it failed."""
    try:
        PARTS[name].run(tiny)
    except Exception as error:  # whatever a compiler or an allocator raises
        traceback.print_exc()  # ends in a remark of JAX's
        reason = (str(error).strip().splitlines() or [""])[0]
        sys.exit(f"{type(error).__name__}: {reason}")


class Runner:
    """Runs parts in processes of their own and prints their lines, and ratios of their figures."""

    def __init__(self, seconds: float, tiny: bool):
        """Starts the clock.

        Args:
            seconds: after this time what still runs is stopped.
            tiny: whether to run at toy sizes.
        """
        self._deadline = time.monotonic() + seconds
        self._tiny = tiny
        self._figures: dict[str, float] = {}
        self._printing = threading.Lock()
        self._running: set[subprocess.Popen] = set()

    def run(self, parts: Sequence[str], side_by_side: int = 1) -> None:
        """Runs the parts in this order, some of them at the same time."""
        with concurrent.futures.ThreadPoolExecutor(side_by_side) as workers:
            try:
                list(workers.map(self._run_part, parts))
            finally:  # interrupted: the card is for others then
                workers.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    _end(process)

    def _run_part(self, name: str) -> None:
        """Runs a part until it ends or the time is up, if the time left suffices for it."""
        start = time.monotonic()
        left, needed = self._deadline - start, PARTS[name].least_seconds
        if left < needed and not self._tiny:
            self._print({"part": name, "skipped": f"{left:.0f} s left, {needed} s needed"})
            return
        with tempfile.TemporaryFile("w+") as errors:
            code = self._pass_on_lines(name, left, errors)
            errors.seek(0)
            told = errors.read().strip().splitlines() or [""]
        if code:
            late = time.monotonic() >= self._deadline
            reason = "the time is up" if late else f"exit code {code}"
            self._print({"part": name, "error": f"{reason}: {told[-1][:300]}"})
            print(*told[-30:], sep="\n", file=sys.stderr, flush=True)
        self._print({"part": name, "seconds": round(time.monotonic() - start, 1)})

    def _pass_on_lines(self, name: str, seconds: float, errors: IO[str]) -> int:
        """Prints the lines of a part that is stopped after some seconds; returns its exit code."""
        command = [sys.executable, "-m", "benchmarks.accelerator", "--part", name]
        process = subprocess.Popen(
            command + ["--tiny"] * self._tiny,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        self._running.add(process)
        late = threading.Timer(max(seconds, 1), _end, (process,))
        late.start()
        # What it leaves running (compilers) holds its output open, and would be waited for.
        threading.Thread(target=lambda: (process.wait(), _end(process)), daemon=True).start()
        try:
            for line in process.stdout:
                self._print(json.loads(line))
            return process.wait()
        finally:
            late.cancel()
            self._running.discard(process)

    def _print(self, line: dict) -> None:
        """Prints a line, and a ratio if it is the second figure of one."""
        with self._printing:
            print_line(line)
            if "value" in line:
                self._figures[line["metric"]] = line["value"]
                self._print_ratio(line["metric"])

    def _print_ratio(self, new: str) -> None:
        """Prints the best of `X: ours…` over `X: torch`, if the new figure is one of these."""
        group = new.partition(": ")[0]
        theirs = f"{group}: torch"
        ours = {f"{group}: ours{end}" for end in _PROGRAMS} & self._figures.keys()
        if ours and theirs in self._figures and new in {theirs, *ours}:
            best = max(self._figures[name] for name in ours)
            goal = _GOALS[group.split()[0].rstrip(",:")]
            print_figure(f"{group}: ours / torch", best / self._figures[theirs], "ratio", goal)


def _end(process: subprocess.Popen) -> None:
    """Kills a part and all that it started, if anything of it still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
