"""The losses are their formulas, whatever the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cocu_jax.models.losses import contrastive_loss, multi_label_loss, normalize


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def cross_entropy(logits, target):
    """Mean over rows of -sum(target * log softmax(logits)), in float64."""
    logits = logits.astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(target * log_softmax).sum(1).mean()


def oracle_loss(image, prompts, log_scale):
    batch, per_image, width = prompts.shape
    scale = min(np.exp(float(log_scale)), 100.0)
    logits = scale * image.astype(np.float64) @ prompts.reshape(-1, width).astype(np.float64).T
    own = np.kron(np.eye(batch), np.ones((1, per_image)))
    return (cross_entropy(logits, own / per_image) + cross_entropy(logits.T, own.T)) / 2


@pytest.mark.parametrize("log_scale", [0.0, 2.6592, 9.0])
def test_losses_equal_numpy_and_the_scale_is_clamped(log_scale):
    rng = np.random.default_rng(0)
    image, text, prompts = unit(rng, 16, 12), unit(rng, 16, 12), unit(rng, 16, 3, 12)
    scale = jnp.float32(log_scale)
    expected = oracle_loss(image, text[:, None], log_scale)
    np.testing.assert_allclose(contrastive_loss(image, text, scale), expected, rtol=1e-5)
    expected = oracle_loss(image, prompts, log_scale)
    np.testing.assert_allclose(multi_label_loss(image, prompts, scale), expected, rtol=1e-5)


def test_clamped_temperature_has_no_gradient():
    rng = np.random.default_rng(0)
    image, text = unit(rng, 4, 8), unit(rng, 4, 8)
    slope = jax.grad(contrastive_loss, argnums=2)
    assert slope(image, text, jnp.float32(9.0)) == 0
    assert slope(image, text, jnp.float32(1.0)) != 0


@pytest.mark.parametrize("loss, shape", [(contrastive_loss, ()), (multi_label_loss, (3,))])
def test_eight_devices_equal_one(loss, shape):
    rng = np.random.default_rng(1)
    arguments = unit(rng, 32, 12), unit(rng, 32, *shape, 12), jnp.float32(2.0)
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    mesh = Mesh(jax.devices(), ("data",))
    sharded = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in arguments[:2]]
    actual = value_and_grad(*sharded, arguments[2])
    expected = value_and_grad(*arguments)
    assert len(actual[1][0].sharding.device_set) == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), actual, expected
    )


def test_normalize_gives_unit_rows_and_survives_a_zero_row():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalize(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: normalize(x).sum())(x)).all()
