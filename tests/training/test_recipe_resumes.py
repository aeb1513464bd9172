"""The recipe's own path, small, ends in the same bits however it was interrupted.

GroupViT in bfloat16 with Gumbel noise, drop-path, batch normalisation and an average of the
parameters, on two corpora with annotations, prompts, RandAugment and erasing.
"""

import os
import signal
import time

import pytest
from processes import assert_same_end, finish, kill, start, wait_for_step

from cocu_jax.stopping import Stopped
from cocu_jax.training.loop import Run, train
from cocu_jax.training.metrics import read_metrics


def test_recipe_stopped_by_ctrl_c_goes_on_to_the_same_bits(recipe_config, tmp_path, monkeypatch):
    config = recipe_config.copy_and_resolve_references()
    config.evaluation, config.total_steps, config.checkpoint_every = None, 6, 0
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(config, str(straight))
    checkpoint_due = Run._checkpoint_due

    def stop_at_step_3(run, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return checkpoint_due(run, step)

    monkeypatch.setattr(Run, "_checkpoint_due", stop_at_step_3)
    with pytest.raises(Stopped, match="saved after step 3 of 6"):
        train(config, str(stopped))
    monkeypatch.undo()
    train(config, str(stopped))
    assert_same_end(config, straight, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2], ids=["one_process", "two_processes"])
def test_recipe_interrupted_in_every_way_ends_in_the_same_bits(recipe_config, tmp_path, processes):
    config = recipe_config.copy_and_resolve_references()
    config.total_steps, config.log_every, config.checkpoint_every = 40, 1, 10
    config.eval_every = 20
    # Only the first of several processes finds programs in the cache; the others would be late.
    config.compile_cache = ""
    straight, workdir = tmp_path / "straight", tmp_path / "interrupted"
    finish(begin(config, straight, processes), straight)

    # Ctrl-C reaches all processes of a terminal; a preemption notice may reach only one.
    for step, number, first in ((3, signal.SIGINT, 0), (8, signal.SIGTERM, processes - 1)):
        started = begin(config, workdir, processes)
        assert wait_for_step(step, started, workdir)
        for process in started[first:]:
            process.send_signal(number)
        finish(started, workdir)
        assert all("stopped and saved after step" in log for log in logs(workdir, processes, step))

    started = begin(config, workdir, processes, program=SLOW_EVALUATION)
    wait_for_file(workdir.parent / "evaluating", started)
    started[-1].send_signal(signal.SIGTERM)
    finish(started, workdir)
    assert all("saved after step 20 of 40" in log for log in logs(workdir, processes, 20))
    assert not [line for line in read_metrics(workdir) if "evaluation/miou" in line]

    started = begin(config, workdir, processes)
    assert wait_for_step(25, started, workdir)
    kill(started[-1:])
    kill(started)  # none can go on alone; a cluster would end them too
    assert not (workdir / "metrics.json").exists()
    finish(begin(config, workdir, processes), workdir)

    assert_same_end(config, straight, workdir)
    assert without_timings(read_metrics(workdir)) == without_timings(read_metrics(straight))


def begin(config, workdir, processes, program=None):
    """As `start`; the programs run for seconds, so compiling them fast matters most."""
    return start(config, workdir, processes, program, xla_flags=FAST_TO_COMPILE)


def logs(workdir, processes, step):
    """What every process has said, a last line for each attempt; tracebacks are an error."""
    found = [
        (workdir.parent / f"{workdir.name}.{rank}.log").read_text() for rank in range(processes)
    ]
    assert not any("Traceback" in log for log in found), step
    return found


def wait_for_file(file, processes) -> None:
    deadline = time.monotonic() + 600
    while not file.exists():
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.1)


def without_timings(lines):
    timings = {"images_per_second", "input_wait"}
    return [{name: x for name, x in line.items() if name not in timings} for line in lines]


FAST_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

# `main.py` whose evaluation takes as long as a large benchmark's.
SLOW_EVALUATION = """
import pathlib, sys, time
from cocu_jax import run
from eval import segmentation

read = segmentation.read_images

def slowly(*arguments):
    pathlib.Path(sys.argv[-1].partition("=")[2]).parent.joinpath("evaluating").touch()
    for example in read(*arguments):
        time.sleep(2)
        yield example

segmentation.read_images = slowly
run.main()
"""
