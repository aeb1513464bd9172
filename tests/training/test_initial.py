"""Runs that begin with the weights of another model, and reading a run's own checkpoints."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from processes import finish, start

from cocu_jax.errors import UserError
from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.keys import Keys
from cocu_jax.models.weights.__main__ import main as convert
from cocu_jax.models.weights.checkpoint import open_checkpoint
from cocu_jax.models.weights.convert import arrays
from cocu_jax.models.weights.huggingface import save_groupvit
from cocu_jax.models.weights.official import save_official
from cocu_jax.stopping import Stopped
from cocu_jax.training import initial
from cocu_jax.training.initial import initial_state
from cocu_jax.training.loop import Run, train
from cocu_jax.training.metrics import read_metrics
from cocu_jax.training.objective import make_objective
from cocu_jax.training.plan import make_plan


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes_config):
    """A finished run of a CLIP, averaged, with an export, and its config."""
    config = scenes_config.copy_and_resolve_references()
    config.export, config.ema_decay, config.total_steps = True, 0.5, 4
    workdir = tmp_path_factory.mktemp("finished")
    train(config, str(workdir))
    return config, workdir


def first_parameters(monkeypatch, config, workdir) -> dict[str, np.ndarray]:
    """What a run of a config begins with, by our dotted paths; the run does not take a step."""

    class Began(Exception):
        pass

    states = []

    def begin(run, start):
        states.append(start)
        raise Began

    with monkeypatch.context() as patch:
        patch.setattr(Run, "__call__", begin)
        with pytest.raises(Began):
            train(config, str(workdir))
    (start,) = states
    assert (start.step, int(start.state.step)) == (0, 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(start.state.optimizer))
    if start.state.average is not None:
        for name, value in (start.state.params | start.state.batch_stats).items():
            np.testing.assert_array_equal(start.state.average[name], value)
    found = start.state.params | start.state.batch_stats
    return {name.replace("/", "."): np.asarray(value) for name, value in found.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], name)


def test_checkpoint_of_a_step_is_the_model_the_run_evaluates(finished):
    _, workdir = finished
    exported = open_checkpoint(str(workdir))
    assert isinstance(exported.model, CLIP) and exported.source == str(workdir)
    last = open_checkpoint(f"{workdir}@4", dtype="bfloat16")
    assert last.model.config.dtype == "bfloat16" and last.processing == exported.processing
    assert_equal(arrays(last.model), arrays(exported.model))
    earlier = arrays(open_checkpoint(f"{workdir}@2").model)
    assert any(np.any(earlier[name] != value) for name, value in arrays(last.model).items())


def test_run_without_an_export_is_opened_at_its_newest_checkpoint(finished, tmp_path):
    _, workdir = finished
    run = tmp_path / "run"
    run.mkdir()
    for name in ("checkpoints", "config.json"):
        (run / name).symlink_to(workdir / name)
    opened = open_checkpoint(str(run))
    assert opened.source == f"{run}@4"
    assert_equal(arrays(opened.model), arrays(open_checkpoint(str(workdir)).model))


def test_step_that_is_not_there_is_told_with_those_that_are(finished, tmp_path):
    _, workdir = finished
    for step in ("3", "latest"):
        with pytest.raises(UserError, match=f"no checkpoint of step {step}; there are: 2, 4"):
            open_checkpoint(f"{workdir}@{step}")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint was written yet"):
        open_checkpoint(str(tmp_path))


def test_checkpoint_of_a_step_is_exported(finished, tmp_path):
    _, workdir = finished
    assert convert(["export", f"{workdir}@2", str(tmp_path / "model")]) == 0
    exported = open_checkpoint(str(tmp_path / "model"))
    assert_equal(arrays(exported.model), arrays(open_checkpoint(f"{workdir}@2").model))


@pytest.mark.parametrize("kind", ["run", "run@step", "folder"])
def test_run_begins_with_the_weights_it_is_given(finished, tmp_path, monkeypatch, kind):
    config, workdir = finished
    source = {"run": workdir, "run@step": f"{workdir}@2", "folder": workdir / "export"}[kind]
    config = config.copy_and_resolve_references()
    config.init_from = str(source)
    expected = arrays(open_checkpoint(str(source)).model)
    assert_equal(first_parameters(monkeypatch, config, tmp_path), expected)


@pytest.fixture(scope="module")
def groupvit(scenes, tiny_config, tmp_path_factory):
    """A config that trains a GroupViT, and random weights of its kind."""
    config = tiny_config()
    config.model.width, config.model.heads = 64, 1  # heads of an official file are 64 wide
    config.model.text.width, config.model.text.heads = 64, 1
    corpus = dict(directory=scenes, split="clip", annotations="")
    config.data.corpora = (ml_collections.ConfigDict(corpus),)
    config.compile_cache = str(tmp_path_factory.mktemp("compiled"))
    settings = make_objective(config).model_config
    graph, state = nnx.split(nnx.eval_shape(lambda: GroupViT(settings, rngs=Keys(0))))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape), jnp.float32), state)
    return config, nnx.merge(graph, state)


@pytest.mark.slow
def test_run_of_the_sigmoid_loss_learns_its_bias_and_exports_a_clip(scenes_config, tmp_path):
    config = scenes_config.copy_and_resolve_references()
    config.model.loss, config.export, config.learning_rate = "sigmoid", True, 1e-2
    train(config, str(tmp_path))
    first, *_, last = read_metrics(tmp_path)
    assert last["loss/total"] < first["loss/total"]
    trained = arrays(open_checkpoint(f"{tmp_path}@{config.total_steps}").model)
    assert trained["logit_bias"] != -10 and trained["log_scale"] != np.float32(np.log(10))
    exported = arrays(open_checkpoint(str(tmp_path)).model)  # features need no bias
    assert trained.keys() - exported.keys() == {"logit_bias"}
    assert_equal(exported, {name: trained[name] for name in exported})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "official"])
def test_groupvit_begins_with_published_weights(groupvit, tmp_path, monkeypatch, kind):
    config, model = groupvit
    save, name = {
        "folder": (save_groupvit, "model"),
        "official": (save_official, "model.pth"),
    }[kind]
    save(model, str(tmp_path / name))
    config = config.copy_and_resolve_references()
    config.init_from = str(tmp_path / name)
    assert_equal(first_parameters(monkeypatch, config, tmp_path / "run"), arrays(model))


@pytest.mark.slow
def test_run_that_was_given_weights_goes_on_from_its_own(finished, tmp_path, monkeypatch):
    config, workdir = finished
    config = config.copy_and_resolve_references()
    source = tmp_path / "source"
    assert convert(["export", f"{workdir}@2", str(source)]) == 0
    config.init_from = str(source)
    straight = train(config, str(tmp_path / "straight"))
    checkpoint_due = Run._checkpoint_due

    def stop_soon(run, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return checkpoint_due(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_checkpoint_due", stop_soon)
        with pytest.raises(Stopped, match="stopped and saved after step [12] of 4"):
            train(config, str(tmp_path / "stopped"))
    source.rename(tmp_path / "moved")  # no longer needed
    again = train(config, str(tmp_path / "stopped"))
    assert again["loss/total"] == straight["loss/total"]
    models = [open_checkpoint(str(tmp_path / name)).model for name in ("straight", "stopped")]
    assert_equal(*map(arrays, models))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run@step", "folder"])
def test_two_processes_begin_with_the_weights_they_are_given(finished, tmp_path, kind):
    config, workdir = finished
    config = config.copy_and_resolve_references()
    config.init_from = str({"run@step": f"{workdir}@2", "folder": workdir / "export"}[kind])
    config.mesh.fsdp, config.export = 4, False  # each process holds parameters of its own
    config.start_learning_rate = config.end_learning_rate = config.learning_rate = 1e-9
    two = tmp_path / "two"
    finish(start(config, two, processes=2), two)
    begun = arrays(open_checkpoint(config.init_from).model)
    trained = arrays(open_checkpoint(f"{two}@{config.total_steps}").model)
    for name, value in begun.items():
        # Four steps at 1e-9: nothing but rounding.
        np.testing.assert_allclose(trained[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_processes_that_have_read_different_weights_are_refused(finished, monkeypatch):
    config, workdir = finished
    plan = make_plan(config, 96)

    def other_processes(mine):
        theirs = mine if same else mine + 1
        return np.stack([mine, theirs])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(initial.multihost_utils, "process_allgather", other_processes)
    same = True
    initial_state(plan, f"{workdir}@2", False)
    same = False
    with pytest.raises(UserError, match="the processes have read different weights"):
        initial_state(plan, f"{workdir}@2", False)


def test_every_difference_is_listed_and_refused(finished, tiny_config):
    config, workdir = finished
    other = config.copy_and_resolve_references()
    other.model.vision_layers, other.model.projection_dim = 2, 4
    other.model.text.heads = 1
    plan = make_plan(other, 96)
    with pytest.raises(UserError) as refused:
        initial_state(plan, str(workdir), False)
    line = str(refused.value)
    for said in (
        "missing: image/blocks/1/",
        "of another shape: image_projection/kernel [16, 8] for [16, 4], text_projection/kernel",
        "other settings: text.heads 2 for 1",
        "--config.init_partial=True",
    ):
        assert said in line
    with pytest.raises(UserError, match="extra: image/class_embedding.* missing|missing.*extra"):
        initial_state(make_plan(tiny_config(), 96), str(workdir), False)


def test_partial_weights_are_taken_where_they_fit(finished, monkeypatch):
    told = []
    monkeypatch.setattr(initial.logging, "warning", lambda line, *parts: told.append(line % parts))
    config, workdir = finished
    other = config.copy_and_resolve_references()
    other.model.projection_dim = 4
    plan = make_plan(other, 96)
    random = plan.init()
    state = initial_state(plan, str(workdir), True)
    assert "of another shape: image_projection/kernel" in "".join(told)
    theirs = arrays(open_checkpoint(str(workdir)).model)
    for name, value in state.params.items():
        given = not name.endswith("_projection/kernel")
        expected = theirs[name.replace("/", ".")] if given else random.params[name]
        np.testing.assert_array_equal(value, expected, name)
        assert value.sharding == random.params[name].sharding


def test_config_of_another_job_is_no_run(tmp_path, finished):
    _, workdir = finished
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    (tmp_path / "config.json").write_text(json.dumps({"job": "curate"}))
    with pytest.raises(UserError, match="config.json: not the config of a training run"):
        open_checkpoint(str(tmp_path))
