"""Time from SIGTERM to the end of the process: `python -m benchmarks.stopping`.

Draws a few scenes, starts the demo's runs through `main.py`, sends SIGTERM in the middle of
training, and checks that the step it names was saved. Prints JSON lines.
"""

import argparse
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks.figures import print_figure
from cocu_jax.training.metrics import read_metrics

GOAL_SECONDS = 20.0
# Stage of the demo -> step of its log at which the signal is sent.
STAGES = {"clip": 30, "caption": 30}


def main() -> None:
    """Prints one JSON line per stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    for stage, step in STAGES.items():
        slowest = max(seconds_to_stop(stage, step) for _ in range(options.rounds))
        metric = f"SIGTERM to exit, demo's {stage} run, slowest of {options.rounds}"
        print_figure(metric, slowest, "s", GOAL_SECONDS, "lower")


def seconds_to_stop(stage: str, step: int) -> float:
    """Seconds from the signal, sent when the log has reached `step`, to the exit."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "main.py", "--config=configs/demo.py", f"--workdir={workdir}"]
        command += [f"--config.stages=scenes,{stage}"]
        sizes = {"clip": 512, "pretrain": 512, "selection": 64, "validation": 64}
        command += [f"--config.scenes.{split}_scenes={size}" for split, size in sizes.items()]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        run = pathlib.Path(workdir) / "seed0" / stage
        while not any(line["step"] >= step for line in read_metrics(run)[-1:]):
            if process.poll() is not None:
                sys.exit(f"the run ended by itself:\n{process.stderr.read()}")
            time.sleep(0.05)
        start = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
        seconds = time.perf_counter() - start
        saved = re.search(r"stopped and saved after step (\d+)", said)
        if process.returncode or not saved or not (run / "checkpoints" / saved.group(1)).exists():
            sys.exit(f"exit status {process.returncode}, nothing saved:\n{said}")
        return seconds


if __name__ == "__main__":
    main()
