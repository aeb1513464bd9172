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
suffice for is named. Ratios to torch follow when both figures are there. Needs jax, flax, optax,
numpy, torch, transformers and the small packages that the models import (pydantic, ml_collections,
jaxtyping, ftfy); no TensorFlow. `--tiny` runs every part at a toy size, on any
machine: its figures mean nothing.
"""

import argparse
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

# Torch shares the card, so JAX may not take most of its memory when it starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

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
    parser.add_argument("--part", choices=list(PARTS), help="run one part in this process")
    options = parser.parse_args()
    if options.part:
        run_here(options.part, options.tiny)
        return
    if not any(name.startswith(tuple(options.only.split(","))) for name in PARTS):
        parser.error(f"--only {options.only}: none of {', '.join(PARTS)} begins so")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the part that runs, too
    deadline = time.monotonic() + options.seconds
    print_line(card_and_versions())
    wanted, figures = tuple(options.only.split(",")), {}
    for name, part in PARTS.items():
        if not name.startswith(wanted):
            continue
        left = deadline - time.monotonic()
        if left < part.least_seconds and not options.tiny:
            needed = f"{left:.0f} s left, {part.least_seconds} s needed"
            print_line({"part": name, "skipped": needed})
            continue
        new = run_part(name, left, options.tiny)
        figures |= new
        print_ratios(figures, new)


def run_here(name: str, tiny: bool) -> None:
    """Runs a part in this process; the last line that a failing one leaves says why it failed."""
    try:
        PARTS[name].run(tiny)
    except Exception as error:  # whatever a compiler or an allocator raises
        traceback.print_exc()  # ends in a remark of JAX's
        reason = (str(error).strip().splitlines() or [""])[0]
        sys.exit(f"{type(error).__name__}: {reason}")


def run_part(name: str, seconds: float, tiny: bool) -> dict[str, float]:
    """Runs a part in its own process, which is stopped when the time is up; passes on its lines.

    Returns:
        The values of its figures by metric. Of one that fails a line says why, and the end of what
        it told on standard error is passed on there.
    """
    command = [sys.executable, "-m", "benchmarks.accelerator", "--part", name]
    figures, start = {}, time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command + ["--tiny"] * tiny,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        late = threading.Timer(max(seconds, 1), _end, (process,))
        late.start()
        # What it leaves running (compilers) holds its output open, and would be waited for.
        threading.Thread(target=lambda: (process.wait(), _end(process)), daemon=True).start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith('{"metric"'):
                    figure = json.loads(line)
                    figures |= {figure["metric"]: figure["value"]} if "value" in figure else {}
            code = process.wait()
        finally:  # interrupted: the card is for others then
            late.cancel()
            _end(process)
        errors.seek(0)
        told = errors.read().strip().splitlines() or [""]
    taken = time.monotonic() - start
    if code:
        reason = "the time is up" if taken >= seconds else f"exit code {code}"
        print_line({"part": name, "error": f"{reason}: {told[-1][:300]}"})
        print(*told[-30:], sep="\n", file=sys.stderr, flush=True)
    print_line({"part": name, "seconds": round(taken, 1)})
    return figures


def _end(process: subprocess.Popen) -> None:
    """Kills a part and all that it started, if anything of it still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def print_ratios(figures: dict[str, float], new: dict[str, float]) -> None:
    """Prints the best of `X: ours…` over `X: torch`, for every X that a new figure is of."""
    for metric, theirs in figures.items():
        group, _, who = metric.partition(": ")
        ours = {f"{group}: ours{end}" for end in _PROGRAMS} & figures.keys()
        if who == "torch" and ours and (new.keys() & {metric, *ours}):
            best = max(figures[name] for name in ours)
            goal = _GOALS[group.split()[0].rstrip(",:")]
            print_figure(f"{group}: ours / torch", best / theirs, "ratio", goal)


if __name__ == "__main__":
    main()
