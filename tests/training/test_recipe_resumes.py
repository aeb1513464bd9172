"""The recipe's own path, small, ends in the same bits however it was interrupted.

GroupViT in bfloat16 with Gumbel noise, drop-path, batch normalisation and an average of the
parameters, on two corpora with annotations, prompts, RandAugment and erasing.
"""

import json
import os
import signal
import time

import numpy as np
import pytest
from processes import assert_same_end, final_arrays, finish, kill, start, wait_for_step

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
    arrays = final_arrays(config, straight)
    assert any(np.asarray(value).dtype == np.float32 for value in arrays)
    assert_same_end(config, straight, stopped)


@pytest.fixture
def config(recipe_config):
    config = recipe_config.copy_and_resolve_references()
    config.total_steps, config.log_every, config.checkpoint_every = 60, 1, 10
    config.eval_every = 30
    return config


@pytest.fixture(scope="module")
def straight(recipe_config, tmp_path_factory):
    """(processes) -> the directory of a run of `config` that nobody interrupted."""
    done = {}

    def of(config, processes):
        if processes not in done:
            workdir = tmp_path_factory.mktemp("straight") / f"of{processes}"
            finish(start(config, workdir, processes), workdir)
            done[processes] = workdir
        return done[processes]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2], ids=["one_process", "two_processes"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_recipe_goes_on_to_the_same_bits(config, straight, tmp_path, processes, number):
    workdir, wanted = tmp_path / "interrupted", straight(config, processes)
    started = start(config, workdir, processes)
    assert wait_for_step(17, started, workdir)
    if number == signal.SIGKILL:
        kill(started[-1:])
        kill(started)
    else:
        # Ctrl-C reaches all processes of a terminal; a preemption notice may reach only one.
        for process in started if number == signal.SIGINT else started[-1:]:
            process.send_signal(number)
        finish(started, workdir)
        for rank in range(processes):
            log = (tmp_path / f"interrupted.{rank}.log").read_text()
            assert "stopped and saved after step" in log and "Traceback" not in log
    assert not (workdir / "metrics.json").exists()
    finish(start(config, workdir, processes), workdir)
    assert_same_end(config, wanted, workdir)
    result, expected = (
        json.loads((directory / "metrics.json").read_text()) for directory in (workdir, wanted)
    )
    timings = {"images_per_second", "input_wait"}
    assert {k: v for k, v in result.items() if k not in timings} == {
        k: v for k, v in expected.items() if k not in timings
    }
    assert [line["step"] for line in read_metrics(workdir) if "loss/total" in line] == list(
        range(1, 61)
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2], ids=["one_process", "two_processes"])
def test_stop_during_an_evaluation_ends_it_and_it_is_made_up_for(
    config, straight, tmp_path, processes
):
    wanted, workdir = straight(config, processes), tmp_path / "interrupted"
    program = SLOW_EVALUATION.format(started=str(tmp_path / "evaluating"))
    started = start(config, workdir, processes, program=program)
    deadline = time.monotonic() + 300
    while not (tmp_path / "evaluating").exists():
        assert time.monotonic() < deadline and started[0].poll() is None
        time.sleep(0.1)
    started[-1].send_signal(signal.SIGTERM)
    finish(started, workdir)
    for rank in range(processes):
        log = (tmp_path / f"interrupted.{rank}.log").read_text()
        assert "stopped and saved after step 30 of 60" in log, log[-2000:]
    assert not [line for line in read_metrics(workdir) if "evaluation/miou" in line]
    finish(start(config, workdir, processes), workdir)
    assert_same_end(config, wanted, workdir)
    evaluated = [
        [(x["step"], x["evaluation/miou"]) for x in read_metrics(d) if "evaluation/miou" in x]
        for d in (workdir, wanted)
    ]
    assert evaluated[0] == evaluated[1] and len(evaluated[0]) == 2


# `main.py` whose evaluation takes as long as a large benchmark's.
SLOW_EVALUATION = """
import pathlib, time
from cocu_jax import run
from eval import segmentation

read = segmentation.read_images

def slowly(*arguments):
    pathlib.Path({started!r}).touch()
    for example in read(*arguments):
        time.sleep(2)
        yield example

segmentation.read_images = slowly
run.main()
"""
