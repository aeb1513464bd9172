"""One step: gradients in parts, averages, and steps that are not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cocu_jax.training.gradients import make_gradients
from cocu_jax.training.mesh import make_mesh, put_batch
from cocu_jax.training.objective import Features, Objective, usage_entropy
from cocu_jax.training.optimizer import make_optimizer
from cocu_jax.training.schedule import Schedule
from cocu_jax.training.state import (
    batch_stats_of,
    create_state,
    graph_of,
    merge_model,
    split_model,
)
from cocu_jax.training.step import StepSettings, compile_step, make_train_step, place_state


class Line(nnx.Module):
    """y = slope * x."""

    def __init__(self):
        self.slope = nnx.Param(jnp.array([1.0]))


LINE = Objective(
    model_config=None,
    build=lambda rngs: Line(),
    features=lambda model, batch: (Features(model.slope[...] * batch["x"], None), {}),
    loss=lambda model, features, gather: (jnp.square(features.image - 3).mean(), {}),
)


def line_step(average_decay: float):
    schedule = Schedule(0.1, 0.1, 0.1, 0, 100)
    optimizer = make_optimizer(schedule, 0.0, 1e9, decay_temperatures=True)
    mesh = make_mesh(-1, 1, 8, jax.devices()[:1])
    settings = StepSettings(average_decay=average_decay)
    step = make_train_step(LINE, optimizer, schedule, settings, mesh)
    return jax.jit(step), create_state(LINE.build, optimizer, 0, bool(average_decay))


@pytest.fixture
def pair_batch() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    batch = {"image": generator.normal(size=(16, 6)), "texts": generator.normal(size=(16, 4, 4))}
    batch = {name: values.astype(np.float32) for name, values in batch.items()}
    return batch | {"noise": generator.integers(0, 2**32, (16, 2), dtype=np.uint32)}


def test_step_without_a_finite_loss_changes_only_the_counters():
    step, start = line_step(average_decay=0.9)
    good, bad = {"x": jnp.ones(8)}, {"x": jnp.full(8, jnp.nan)}
    state, _ = step(start, good)
    after, metrics = step(step(state, bad)[0], bad)
    for name in ("params", "batch_stats", "optimizer", "average"):
        same = jax.tree.map(jnp.array_equal, getattr(after, name), getattr(state, name))
        assert all(jax.tree.leaves(same)), name
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (3, 2, 2)
    assert float(metrics["skipped_in_row"]) == 2
    recovered, metrics = step(after, good)
    assert (int(recovered.skipped), int(recovered.skipped_in_row)) == (2, 0)
    assert recovered.params["slope"] != state.params["slope"]


def test_average_of_a_short_run_is_near_its_values_not_its_start():
    step, state = line_step(average_decay=0.999)
    expected, seen = float(state.params["slope"][0]), []
    for done in range(40):
        state, _ = step(state, {"x": jnp.ones(8)})
        seen.append(float(state.params["slope"][0]))
        decay = min(0.999, (1 + done) / (10 + done))
        expected = decay * expected + (1 - decay) * seen[-1]
    np.testing.assert_allclose(state.average["slope"], expected, rtol=1e-5)
    assert seen[10] < expected < max(seen)


def test_gradients_in_parts_are_those_of_the_whole_batch(pair, pair_batch):
    """Contrastive loss with the softmax, multi-label loss with the sigmoid."""

    def with_bias(rngs):
        model = pair.build(rngs)
        model.multi_label_logit_bias = nnx.Param(jnp.array(-4.0))
        return model

    mixed, batch = pair._replace(build=with_bias), pair_batch
    params, stats = jax.jit(lambda: split_model(mixed.build(nnx.Rngs(0)))[1:])()
    mesh = make_mesh(4, 2, 16)
    gradients = jax.jit(make_gradients(mixed, 2, mesh))
    loss, metrics, grads, new_stats = gradients(params, stats, put_batch(mesh, batch))

    def whole(params):
        model = merge_model(graph_of(mixed.build), params, stats)
        value, _ = mixed.loss(model, mixed.features(model, batch)[0], lambda x: x)
        return value, batch_stats_of(model)

    (expected, expected_stats), expected_grads = jax.jit(jax.value_and_grad(whole, has_aux=True))(
        params
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert {"loss/contrastive", "loss/multi_label", "bias/multi_label", "noise"} <= metrics.keys()
    assert "bias/contrastive" not in metrics
    for got, wanted in ((new_stats, expected_stats), (grads, expected_grads)):
        for name, value in wanted.items():
            # A bias before batch normalisation has no gradient but rounding.
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("axes", [pytest.param((8, 1), marks=pytest.mark.slow), (4, 2)])
def test_split_updates_are_those_of_whole_arrays(pair, pair_batch, monkeypatch, axes):
    monkeypatch.setattr("cocu_jax.training.mesh._SMALLEST_SPLIT", 1)
    mesh = make_mesh(*axes, 16)
    schedule = Schedule(0.1, 0.1, 0.1, 0, 100)
    # Large, for a bias before batch normalisation has no gradient but rounding.
    eps = 1e-2
    optimizer = make_optimizer(schedule, 0.05, 0.1, decay_temperatures=True, eps=eps)
    create = functools.partial(create_state, pair.build, optimizer, 0, True)
    batch, ends = put_batch(mesh, pair_batch), []
    for split in (False, True):
        settings = StepSettings(average_decay=0.9, split_update=split)
        places = place_state(mesh, jax.eval_shape(create), settings)
        train_step = make_train_step(pair, optimizer, schedule, settings, mesh)
        step = compile_step(train_step, mesh, places)
        state = jax.jit(create, out_shardings=places)()
        for _ in range(3):
            state, metrics = step(state, batch)
        ends.append((state, metrics))

    (whole, expected), (parts, metrics) = ends
    kernel = "image_projector/dense1/kernel"  # [5, 16]
    trees = jax.tree.leaves((parts.optimizer, parts.average), is_leaf=lambda x: isinstance(x, dict))
    held = [tree[kernel] for tree in trees if isinstance(tree, dict)]
    assert len(held) == 3 and {x.addressable_shards[0].data.size for x in held} == {5 * 16 // 8}
    assert parts.params[kernel].addressable_shards[0].data.size == 5 * 16 // axes[1]
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for value, wanted in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


def test_usage_entropy_is_zero_for_one_segment_and_one_for_even_use():
    one = jnp.zeros((2, 4, 8)).at[:, 1].set(1.0)
    even = jnp.repeat(jnp.eye(4), 2, axis=1)[None]
    assert float(usage_entropy(one)) == 0
    np.testing.assert_allclose(usage_entropy(even), 1, rtol=1e-6)
