"""The same step on one device and on eight."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from cocu_jax.errors import UserError
from cocu_jax.models.keys import Keys
from cocu_jax.training.gradients import make_gradients
from cocu_jax.training.mesh import BATCH, make_mesh, put_batch, state_shardings
from cocu_jax.training.objective import make_objective
from cocu_jax.training.state import split_model


@pytest.fixture(scope="module")
def gradients_on(tiny_config, random_batch):
    """(data, fsdp) -> loss, gradients and new batch statistics of one batch of a small GroupViT."""
    config = tiny_config()
    config.model.depths = (1, 0, 0)
    objective, batch = make_objective(config), random_batch(config)
    generator = np.random.default_rng(0)

    def draw(name, shape):
        """Without compiling; away from zeros, whose layer norm multiplies rounding errors."""
        centre = 1.0 if name.endswith(("scale", "var")) else 0.0
        noise = 0.2 if name.split("/")[-1] not in ("mean", "var") else 0.0
        return np.asarray(centre + noise * generator.normal(size=shape), np.float32)

    params, stats = (
        {name: draw(name, leaf.shape) for name, leaf in arrays.items()}
        for arrays in jax.eval_shape(lambda: split_model(objective.build(Keys(0)))[1:])
    )

    @functools.cache
    def run(data: int, fsdp: int):
        mesh = make_mesh(data, fsdp, config.batch_size, jax.devices()[: data * fsdp])
        arrays = jax.device_put((params, stats), state_shardings(mesh, (params, stats)))
        # Each program runs once: compiling it fast matters, not running it fast.
        fast = {"xla_backend_optimization_level": 0}
        gradients = jax.jit(make_gradients(objective, 1, mesh), compiler_options=fast)
        result = gradients(*arrays, put_batch(mesh, batch))
        return float(result.loss), *jax.device_get((result.params, result.batch_stats))

    return run


@pytest.mark.parametrize("mesh", [(4, 2), pytest.param((8, 1), marks=pytest.mark.slow)])
def test_loss_and_gradients_on_eight_devices_equal_those_on_one(gradients_on, mesh):
    loss, grads, stats = gradients_on(*mesh)
    expected_loss, expected, expected_stats = gradients_on(1, 1)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for name, value in expected_stats.items():
        np.testing.assert_allclose(stats[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    norm = np.sqrt(sum(np.square(g).sum() for g in expected.values()))
    for name, value in expected.items():
        # float32 sums in another order: relative to the whole gradient, as clipping sees it.
        assert np.linalg.norm(grads[name] - value) < 1e-5 * norm, name


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        (("fsdp",), {"wide": (128, 512), "both": (130, 511), "odd": (511, 1023), "small": (8, 8)}),
        (
            ("fsdp", "data"),  # `data` takes what `fsdp` left, or another axis
            {"wide": (128, 128), "both": (130, 511), "odd": (511, 1023), "small": (8, 8)},
        ),
    ],
)
def test_large_arrays_are_split_by_the_axes_that_divide_them(axes, parts):
    mesh = make_mesh(4, 2, 8)
    shapes = {
        "wide": jax.ShapeDtypeStruct((128, 1024), jnp.float32),
        "both": jax.ShapeDtypeStruct((130, 1022), jnp.float32),
        "odd": jax.ShapeDtypeStruct((511, 1023), jnp.float32),
        "small": jax.ShapeDtypeStruct((8, 8), jnp.float32),
    }
    shardings = state_shardings(mesh, shapes, axes)
    assert {name: s.shard_shape(shapes[name].shape) for name, s in shardings.items()} == parts


def test_only_text_features_are_gathered_and_nothing_is_repartitioned(pair):
    mesh = make_mesh(4, 2, 64)
    rows = NamedSharding(mesh, BATCH)
    params, stats = jax.eval_shape(lambda: split_model(pair.build(nnx.Rngs(0)))[1:])
    batch = {
        "image": jax.ShapeDtypeStruct((64, 6), jnp.float32, sharding=rows),
        "texts": jax.ShapeDtypeStruct((64, 4, 4), jnp.float32, sharding=rows),
        "noise": jax.ShapeDtypeStruct((64, 2), jnp.uint32, sharding=rows),
    }
    lowered = jax.jit(make_gradients(pair, 1, mesh)).lower(params, stats, batch)
    moves = "all-gather|all-to-all|collective-permute|collective-broadcast"
    moved = re.findall(rf"= (\S+)\{{\S+ ({moves})\(", lowered.compile().as_text())
    # Captions and prompts, of which each device multiplies all with its own images.
    assert sorted(moved) == [("f32[64,1,3]", "all-gather"), ("f32[64,3,3]", "all-gather")]


@pytest.mark.parametrize(
    ("data", "fsdp", "batch", "message"),
    [
        (3, 1, 8, "there are 8 devices"),
        (-1, 3, 8, "there are 8"),
        (-1, 1, 12, "not a multiple of the 8"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(data, fsdp, batch, message):
    with pytest.raises(UserError, match=message):
        make_mesh(data, fsdp, batch)
