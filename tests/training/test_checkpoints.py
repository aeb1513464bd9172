"""Checkpoints: what is kept, what is read when files are damaged, and onto which mesh."""

import dataclasses
import errno
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cocu_jax.errors import UserError
from cocu_jax.training import reading
from cocu_jax.training.checkpoints import BEST_FIGURE, Checkpoints
from cocu_jax.training.mesh import make_mesh
from cocu_jax.training.state import TrainState
from cocu_jax.training.step import StepSettings, place_state

FACTS = {"corpora": ["abc"], "batch_size": 8}


def make_state(step: int, mesh, split: bool = False) -> TrainState:
    count = jnp.asarray(step, jnp.int32)
    state = TrainState(
        step=count,
        skipped=count,
        skipped_in_row=count,
        params={"image/kernel": jnp.arange(2.0**17).reshape(256, 512) + step},
        batch_stats={"mean": jnp.full(4, 0.5)},
        optimizer=({"image/kernel": jnp.ones((256, 512))}, ()),
        average=None,
    )
    return jax.device_put(state, place_state(mesh, state, StepSettings(split_update=split)))


def targets(state: TrainState, mesh, split: bool = False):
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        place_state(mesh, state, StepSettings(split_update=split)),
    )


@pytest.fixture
def mesh():
    return make_mesh(8, 1, 8)


@pytest.fixture
def saved(tmp_path, mesh):
    """A directory with checkpoints of steps 1 to 3."""
    checkpoints = Checkpoints(tmp_path, keep=3, facts=FACTS)
    for step in (1, 2, 3):
        checkpoints.save(make_state(step, mesh), step)
    checkpoints.close()
    return tmp_path


def restore(directory, mesh, facts=FACTS, split=False):
    checkpoints = Checkpoints(directory, keep=3, facts=facts)
    try:
        return checkpoints.restore(targets(make_state(0, mesh), mesh, split))
    finally:
        checkpoints.close()


def largest_file(directory):
    return max(directory.rglob("state/**/d/*"), key=lambda file: file.stat().st_size)


def test_newest_checkpoints_and_the_best_are_kept_over_restarts(tmp_path, mesh):
    for attempt in ([None, 0.5, None], [0.4, None, None]):
        checkpoints = Checkpoints(tmp_path, keep=2, facts=FACTS)
        first = (checkpoints.latest or 0) + 1
        for step, miou in enumerate(attempt, start=first):
            figures = None if miou is None else {BEST_FIGURE: miou}
            checkpoints.save(make_state(step, mesh), step, figures)
        checkpoints.close()
    kept = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
    assert kept == {2, 5, 6}


def test_directory_may_be_relative(saved, mesh, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert restore(saved.name, mesh).step == 3
    checkpoints = Checkpoints(saved.name, keep=1, facts=FACTS)
    checkpoints.save(make_state(4, mesh), 4)
    checkpoints.close()
    assert restore(saved, mesh).step == 4


@pytest.mark.parametrize("axes", [(8, 1), (4, 2), (1, 1)])
def test_checkpoint_is_restored_onto_any_mesh(saved, axes):
    mesh = make_mesh(*axes, 8, jax.devices()[: axes[0] * axes[1]])
    restored = restore(saved, mesh)
    expected = make_state(3, mesh)
    assert restored.step == 3
    assert restored.state.params["image/kernel"].sharding.mesh.shape == mesh.shape
    for value, wanted in zip(
        jax.tree.leaves(restored.state), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("split", [True, False])
def test_checkpoint_of_split_moments_is_restored_onto_whole_ones_and_back(tmp_path, mesh, split):
    checkpoints, expected = Checkpoints(tmp_path, keep=1, facts=FACTS), make_state(1, mesh, split)
    checkpoints.save(expected, 1)
    checkpoints.close()

    restored = restore(tmp_path, mesh, split=not split).state

    moments = restored.optimizer[0]["image/kernel"]
    assert moments.addressable_shards[0].data.shape == ((256, 512) if split else (256, 64))
    assert restored.params["image/kernel"].sharding.is_fully_replicated
    for value, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_truncated_checkpoint_is_passed_over(saved, mesh):
    file = largest_file(saved / "3")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    restored = restore(saved, mesh)
    assert restored.step == int(restored.state.step) == 2


def test_checkpoint_with_a_missing_file_is_passed_over_and_can_be_saved_again(saved, mesh):
    largest_file(saved / "3").unlink()
    (saved / "2" / "facts" / "metadata").unlink()
    checkpoints = Checkpoints(saved, keep=3, facts=FACTS)
    assert checkpoints.restore(targets(make_state(0, mesh), mesh)).step == 1
    for step in (2, 3):
        checkpoints.save(make_state(step, mesh), step)
    checkpoints.close()
    assert restore(saved, mesh).step == 3


def test_damaged_checkpoints_are_set_aside_and_do_not_keep_older_steps_from_being_saved(
    saved, mesh
):
    for step in ("2", "3"):
        os.truncate(largest_file(saved / step), 1000)
    checkpoints = Checkpoints(saved, keep=3, facts=FACTS)
    assert checkpoints.restore(targets(make_state(0, mesh), mesh)).step == 1
    checkpoints.save(make_state(2, mesh), 2)
    checkpoints.close()
    assert restore(saved, mesh).step == 2
    assert {path.name.rsplit("-", 2)[0] for path in saved.glob("damaged-*")} == {
        "damaged-2",
        "damaged-3",
    }


def test_file_that_is_missing_for_a_moment_costs_nothing(saved, mesh):
    file = largest_file(saved / "3")
    hidden = file.rename(saved / "hidden")
    timer = threading.Timer(0.3, hidden.rename, [file])
    timer.start()
    assert restore(saved, mesh).step == 3
    assert not timer.is_alive()


@pytest.mark.parametrize("failures", [2, 100])
def test_storage_that_does_not_answer_is_asked_again_and_never_rolls_back(
    saved, mesh, failures, monkeypatch
):
    monkeypatch.setattr(reading, "_WAITS_FOR_STORAGE", (0.0, 0.0, 0.0))
    read = ocp.CheckpointManager.restore
    left = [failures]

    def fail_at_first(self, *args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail_at_first)
    if failures == 2:
        assert restore(saved, mesh).step == 3
    else:
        with pytest.raises(UserError, match="checkpoint 3 cannot be read now .* nothing is lost"):
            restore(saved, mesh)
        assert left == [96]  # four attempts, all on the newest
    assert {path.name for path in saved.iterdir()} >= {"1", "2", "3"}


def test_checkpoint_of_another_model_is_refused_not_called_damaged(saved, mesh):
    state = make_state(0, mesh)
    wider = {"image/kernel": jax.ShapeDtypeStruct((256, 1024), jnp.float32)}
    for params in (wider, {}, state.params | {"text/kernel": jnp.ones(3)}):
        wanted = targets(dataclasses.replace(state, params=params), mesh)
        checkpoints = Checkpoints(saved, keep=3, facts=FACTS)
        with pytest.raises(UserError, match="checkpoint 3 is of another model: params/") as error:
            checkpoints.restore(wanted)
        checkpoints.close()
        assert "remove" not in str(error.value)
    assert restore(saved, mesh).step == 3


def test_figures_are_added_to_a_checkpoint_whose_arrays_stay_as_they_are(saved, mesh):
    def arrays():
        return {
            file: (file.stat().st_ino, file.stat().st_mtime_ns)
            for file in (saved / "2").rglob("state/**/*")
        }

    before = arrays()
    checkpoints = Checkpoints(saved, keep=1, facts=FACTS)
    checkpoints.save(make_state(2, mesh), 2, {BEST_FIGURE: 0.5})
    checkpoints.save(make_state(4, mesh), 4)
    checkpoints.close()
    assert before and arrays() == before  # kept, for it is the best, and never written again
    os.rename(saved / "4", saved / "away")
    assert restore(saved, mesh).evaluated == {BEST_FIGURE: 0.5}


def test_nothing_readable_is_an_error_and_nothing_at_all_is_not(saved, mesh, tmp_path):
    for step in ("1", "2", "3"):
        largest_file(saved / step).unlink()
    with pytest.raises(UserError, match="all 3 checkpoints are damaged"):
        restore(saved, mesh)
    assert {path.name for path in saved.iterdir()} >= {"1", "2", "3"}
    assert restore(tmp_path / "elsewhere", mesh) is None


def test_checkpoint_of_other_data_is_refused(saved, mesh):
    with pytest.raises(
        UserError, match=r"checkpoint 3 was written with batch_size=8, this run has 16"
    ):
        restore(saved, mesh, FACTS | {"batch_size": 16})
