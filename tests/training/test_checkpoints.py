"""Checkpoints: what is kept, what is read when files are damaged, and onto which mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cocu_jax.errors import UserError
from cocu_jax.training.checkpoints import BEST_FIGURE, Checkpoints
from cocu_jax.training.mesh import make_mesh, state_shardings
from cocu_jax.training.state import TrainState

FACTS = {"corpora": ["abc"], "batch_size": 8}


def make_state(step: int, mesh) -> TrainState:
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
    return jax.device_put(state, state_shardings(mesh, state))


def targets(state: TrainState, mesh):
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        state_shardings(mesh, state),
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


def restore(directory, mesh, facts=FACTS):
    checkpoints = Checkpoints(directory, keep=3, facts=facts)
    try:
        return checkpoints.restore(targets(make_state(0, mesh), mesh))
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


def test_nothing_readable_is_an_error_and_nothing_at_all_is_not(saved, mesh, tmp_path):
    for step in ("1", "2", "3"):
        largest_file(saved / step).unlink()
    with pytest.raises(UserError, match="none of the 3 checkpoints can be read"):
        restore(saved, mesh)
    assert restore(tmp_path / "elsewhere", mesh) is None


def test_checkpoint_of_other_data_is_refused(saved, mesh):
    with pytest.raises(
        UserError, match=r"checkpoint 3 was made with batch_size=8, this run has 16"
    ):
        restore(saved, mesh, FACTS | {"batch_size": 16})
