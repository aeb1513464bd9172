"""Whole runs on a few scenes: the log, stopping, going on, finishing."""

import json
import os
import signal
import types

import jax
import ml_collections
import numpy as np
import pytest

from cocu_jax.errors import UserError
from cocu_jax.stopping import Stopped
from cocu_jax.training import loop
from cocu_jax.training.checkpoints import Checkpoints
from cocu_jax.training.loop import Run, train
from cocu_jax.training.metrics import MetricsLog, read_metrics
from cocu_jax.training.plan import make_plan
from cocu_jax.training.records import data_facts
from cocu_jax.workdir_lock import WorkdirLock


def final_state(config, workdir):
    """The arrays of the last checkpoint."""
    plan = make_plan(config, 96)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep, data_facts(config))
    restored = checkpoints.restore(plan.targets())
    checkpoints.close()
    assert restored.step == config.total_steps
    return jax.device_get(restored.state)


def assert_same(state, expected):
    for value, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, scenes_config):
    """A run that nobody interrupted: its config, directory and result."""
    workdir = tmp_path_factory.mktemp("straight")
    return scenes_config, workdir, train(scenes_config, str(workdir))


def test_run_writes_its_log_records_and_result(straight):
    config, workdir, result = straight
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert json.loads((workdir / "metrics.json").read_text()) == result
    wanted = {"loss/contrastive", "temperature/contrastive", "learning_rate", "gradient_norm"}
    wanted |= {"images_per_second", "input_wait", "skipped_steps"}
    assert wanted <= lines[-1].keys()
    assert "image/blocks/0/mlp/fc1/kernel" in (workdir / "parameters.txt").read_text()
    assert json.loads((workdir / "environment.json").read_text())["devices"] == 8
    assert list(workdir.glob("events.out.tfevents.*"))


def test_finished_run_returns_its_result_at_once(straight, monkeypatch):
    config, workdir, result = straight
    monkeypatch.setattr(loop, "make_plan", None)  # would be needed to do anything
    assert train(config, str(workdir)) == result


def test_stopped_run_goes_on_to_identical_parameters(straight, tmp_path, monkeypatch):
    config, workdir, result = straight
    checkpoint_due = Run._checkpoint_due

    def stop_at_step_3(run, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return checkpoint_due(run, step)

    monkeypatch.setattr(Run, "_checkpoint_due", stop_at_step_3)
    with pytest.raises(Stopped, match="saved after step 3 of 6"):
        train(config, str(tmp_path))
    monkeypatch.undo()
    again = train(config, str(tmp_path))
    assert again["loss/total"] == result["loss/total"]
    assert_same(final_state(config, tmp_path), final_state(config, workdir))
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6]


def test_checkpoints_are_due_by_the_minute_at_steps_that_log(scenes_config, tmp_path, monkeypatch):
    config = scenes_config.copy_and_resolve_references()
    config.checkpoint_every, config.checkpoint_minutes = 0, 1.0
    checkpoint_due, now = Run._checkpoint_due, [0.0]

    def a_minute_passes_at_step_3(run, step):
        now[0] += 60 * (step == 3)
        return checkpoint_due(run, step)

    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Run, "_checkpoint_due", a_minute_passes_at_step_3)
    train(config, str(tmp_path))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "6"}


class Interrupted:
    """Stands for an evaluation; SIGTERM comes during the first one."""

    def __init__(self):
        self.calls = 0

    def due(self, step, last):
        return last or step == 4

    def __call__(self, model, stop):
        self.calls += 1
        if self.calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop(1)
            raise Stopped
        return {"evaluation/miou": 1 / self.calls}

    def draw(self, model):
        return {}


def test_run_stopped_while_it_evaluates_saves_and_evaluates_afterwards(
    straight, tmp_path, monkeypatch
):
    config, workdir, _ = straight
    config = config.copy_and_resolve_references()
    config.eval_every = 4
    evaluation = Interrupted()
    monkeypatch.setattr(loop, "open_evaluations", lambda config: (evaluation,))
    with pytest.raises(Stopped, match="saved after step 4 of 6"):
        train(config, str(tmp_path))
    result = train(config, str(tmp_path))
    lines = read_metrics(tmp_path)
    figures = [(x["step"], x["evaluation/miou"]) for x in lines if "evaluation/miou" in x]
    assert figures == [(4, 1 / 2), (6, 1 / 3)]
    assert result["evaluation/miou"] == 1 / 3
    assert_same(final_state(config, tmp_path), final_state(config, workdir))
    (tmp_path / "metrics.json").unlink()  # killed before its result was written
    assert train(config, str(tmp_path)) == result
    assert evaluation.calls == 3


@pytest.mark.slow
def test_two_benchmarks_are_evaluated_each_at_its_own_steps(scenes, tiny_config, tmp_path):
    config = tiny_config()
    corpus = dict(directory=scenes, split="pretrain", annotations="")
    config.data.corpora = (ml_collections.ConfigDict(corpus),)
    one = dict(directory=scenes, split="selection", crop=32, stride=32, resize_long_short=(32, 32))
    other = one | dict(split="validation", every=4, limit=8, name="few")
    config.eval_every = 3
    with config.ignore_type():
        config.evaluation = tuple(map(ml_collections.ConfigDict, (one, other)))
    result = train(config, str(tmp_path))
    steps = {
        name: [line["step"] for line in read_metrics(tmp_path) if name in line]
        for name in ("evaluation/miou", "evaluation/few/miou")
    }
    assert steps == {"evaluation/miou": [3, 6], "evaluation/few/miou": [4, 6]}
    assert 0 <= result["evaluation/miou"] <= 1 and 0 <= result["evaluation/few/miou"] <= 1


def test_workdir_of_another_config_is_refused(straight):
    config, workdir, _ = straight
    other = config.copy_and_resolve_references()
    other.learning_rate = 1.0
    with pytest.raises(UserError, match="config.learning_rate"):
        train(other, str(workdir))


def test_second_run_in_a_workdir_is_refused_before_it_writes(scenes_config, tmp_path):
    with WorkdirLock(str(tmp_path)), pytest.raises(UserError, match="another run is at work"):
        train(scenes_config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_run_that_diverges_stops_with_one_clear_line(scenes_config, tmp_path):
    config = scenes_config.copy_and_resolve_references()
    config.learning_rate = config.start_learning_rate = 1e38
    config.nonfinite_limit = 2
    config.total_steps = 20
    with pytest.raises(
        UserError, match="loss or gradient was not finite .* lower config.learning_rate"
    ):
        train(config, str(tmp_path))


def test_log_goes_on_without_repeating_or_keeping_unsaved_steps(tmp_path):
    log = MetricsLog(tmp_path, 0, writes=True)
    for step in (10, 20, 30):
        log.add({"loss/total": np.float32(step), "skipped_steps": np.float32(0)})
        log.add({"loss/total": np.float32(np.nan), "skipped_steps": np.float32(1)})
        log.write(step, {"images_per_second": 1.0})
    assert log.latest()["loss/total"] == 30  # the mean of the steps that count
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss/to')  # killed while writing
    resumed = MetricsLog(tmp_path, 20, writes=True)
    assert resumed.latest()["step"] == 20
    resumed.add({"loss/total": np.float32(7)})
    resumed.write(30, {})
    resumed.close()
    assert [(line["step"], line["loss/total"]) for line in read_metrics(tmp_path)] == [
        (10, 10),
        (20, 20),
        (30, 7),
    ]
