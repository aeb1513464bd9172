"""The parts: batch norm as torch's, drop-path, hard assignment, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cocu_jax.models.grouping import hard_assignment
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.keys import Keys
from cocu_jax.models.layers import BatchNorm, Mlp, drop_path
from cocu_jax.models.text import TextConfig


def test_batch_norm_follows_torch_over_steps():
    ours, theirs = BatchNorm(6), torch.nn.BatchNorm1d(6)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = (2 + 3 * rng.standard_normal((10, 6))).astype(np.float32)
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(ours(x, train=True), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-5)
    expected = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours(x, train=False), expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_statistics_are_of_the_global_batch():
    x = np.random.default_rng(0).standard_normal((32, 4), dtype=np.float32) + np.arange(32)[:, None]
    mesh = Mesh(jax.devices(), ("data",))
    one, eight = BatchNorm(4), BatchNorm(4)

    @nnx.jit
    def train(norm, x):
        return norm(x, train=True)

    expected = train(one, jnp.asarray(x))
    actual = train(eight, jax.device_put(x, NamedSharding(mesh, P("data"))))
    assert len(actual.sharding.device_set) == 8
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(eight.var[...], one.var[...], rtol=1e-5)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((20_000, 2, 1))
    dropped = drop_path(x, 0.1, jax.random.split(jax.random.key(0), len(x)))
    assert (dropped[:, 0] == dropped[:, 1]).all()
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.9], rtol=1e-6)
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.01)
    assert drop_path(x, 0.1, None) is x


def test_hard_assignment_samples_the_softmax_with_its_gradient():
    logits = jnp.array([[1.0], [0.0], [-1.0]]) * jnp.ones((50_000, 3, 1))
    gumbel = jax.random.gumbel(jax.random.key(0), logits.shape)
    hard, pull = jax.vjp(lambda x: hard_assignment(x, gumbel), logits)
    np.testing.assert_allclose(hard, np.round(hard), atol=1e-6)
    np.testing.assert_allclose(hard.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(hard.mean(0), jax.nn.softmax(logits, axis=1)[0], atol=0.01)
    direction = jax.random.normal(jax.random.key(1), logits.shape)
    _, soft_pull = jax.vjp(lambda x: jax.nn.softmax(x + gumbel, axis=1), logits)
    np.testing.assert_allclose(pull(direction)[0], soft_pull(direction)[0], rtol=1e-5, atol=1e-7)


def test_published_initial_values_and_drop_path_rates():
    config = GroupViTConfig(
        width=64,
        heads=2,
        depths=(1, 1, 1),
        groups=(8, 4),
        projection_hidden=32,
        text=TextConfig(vocab_size=1000, width=64, heads=2, layers=3),
    )
    deviations = {
        "image.patch_embed.kernel": 0.02,
        "image.position_embedding": 0.02,
        "image.stages.0.group_tokens": 0.02,
        "image.stages.0.blocks.0.attention.query.kernel": 0.02,
        "image.stages.0.blocks.0.mlp.fc2.kernel": 0.02,
        "image.stages.1.grouping.assign.value.kernel": 0.02,
        "text.token_embedding": 0.02,
        "text.position_embedding": 0.01,
        "text.blocks.0.attention.key.kernel": 64**-0.5,
        "text.blocks.0.attention.out.kernel": 64**-0.5 * 6**-0.5,
        "text.blocks.0.mlp.fc1.kernel": 128**-0.5,
        "text.blocks.0.mlp.fc2.kernel": 64**-0.5 * 6**-0.5,
    }
    zeros = ("image.stages.1.group_tokens", "image.stages.0.blocks.0.attention.query.bias")

    @jax.jit
    def initialise():
        """Only these arrays: the others are not even compiled."""
        state = nnx.to_flat_state(nnx.state(GroupViT(config, rngs=Keys(0))))
        values = {".".join(map(str, path)): variable[...] for path, variable in state}
        return {name: values[name] for name in (*deviations, *zeros, "log_scale")}

    values = initialise()
    for name, deviation in deviations.items():
        # The smallest has 512 entries: the estimate is good to 3% (one standard deviation).
        np.testing.assert_allclose(values[name].std(), deviation, rtol=0.12, err_msg=name)
    assert not any(values[name].any() for name in zeros)
    np.testing.assert_allclose(values["log_scale"], np.log(1 / 0.07), rtol=1e-6)
    model = nnx.eval_shape(lambda: GroupViT(config, rngs=Keys(0)))
    rates = [block.drop_path for stage in model.image.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1])


def test_keys_are_those_of_rngs():
    ours, theirs = Keys(7), nnx.Rngs(7)
    for _ in range(3):
        assert jnp.array_equal(
            jax.random.key_data(ours.params()), jax.random.key_data(theirs.params())
        )


def test_mlp_that_recomputes_keeps_one_hidden_array_and_has_the_same_gradients():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    init = nnx.initializers.normal(1.0)
    kept, results = {}, {}
    for remat in (False, True):
        mlp = Mlp(
            4, 24, 4, init_in=init, init_out=init, activation="gelu", dtype="float32",
            rngs=nnx.Rngs(0), remat=remat, flat=not remat,
        )  # fmt: skip
        graph, params = nnx.split(mlp)
        out, backward = jax.vjp(lambda p, x, graph=graph: nnx.merge(graph, p)(x), params, x)
        kept[remat] = sum(jnp.size(r) == 2 * 5 * 24 for r in jax.tree.leaves(backward))
        results[remat] = jax.tree.leaves((out, backward(jnp.ones_like(out))))
    # The input of the activation; without recomputation its output and its derivative's steps too.
    assert kept[True] == 1 < kept[False]
    for found, wanted in zip(results[True], results[False], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
