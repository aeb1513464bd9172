"""The losses are their formulas, whatever the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cocu_jax.models.losses import multi_label_loss, normalize, sigmoid_loss


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
    image, scale = unit(rng, 16, 12), jnp.float32(log_scale)
    for prompts in (unit(rng, 16, 1, 12), unit(rng, 16, 3, 12)):
        expected = oracle_loss(image, prompts, log_scale)
        np.testing.assert_allclose(multi_label_loss(image, prompts, scale), expected, rtol=1e-5)


def oracle_sigmoid_loss(image, prompts, log_scale, bias):
    """Mean over the k prompt slots of SigLIP's sum over all pairs of images and texts, float64."""
    batch, per_image, _ = prompts.shape
    image, prompts = image.astype(np.float64), prompts.astype(np.float64)
    total = 0.0
    for slot in range(per_image):
        logits = min(np.exp(log_scale), 100.0) * image @ prompts[:, slot].T + bias
        labels = 2 * np.eye(batch) - 1
        total += np.log1p(np.exp(-labels * logits)).sum() / batch
    return total / per_image


@pytest.mark.parametrize("log_scale", [0.0, 2.3026, 9.0])
def test_sigmoid_loss_equals_numpy(log_scale):
    rng = np.random.default_rng(0)
    image, scale, bias = unit(rng, 16, 12), jnp.float32(log_scale), jnp.float32(-7.5)
    for prompts in (unit(rng, 16, 1, 12), unit(rng, 16, 3, 12)):
        expected = oracle_sigmoid_loss(image, prompts, log_scale, -7.5)
        np.testing.assert_allclose(sigmoid_loss(image, prompts, scale, bias), expected, rtol=1e-5)


def test_clamped_temperature_has_no_gradient():
    rng = np.random.default_rng(0)
    image, text = unit(rng, 4, 8), unit(rng, 4, 1, 8)
    slope = jax.grad(multi_label_loss, argnums=2)
    assert slope(image, text, jnp.float32(9.0)) == 0
    assert slope(image, text, jnp.float32(1.0)) != 0


@pytest.mark.parametrize(
    "loss, prompts, scalars",
    [(multi_label_loss, 1, (2.0,)), (multi_label_loss, 3, (2.0,)), (sigmoid_loss, 3, (2.0, -5.0))],
)
def test_eight_devices_equal_one(loss, prompts, scalars):
    rng = np.random.default_rng(1)
    arguments = unit(rng, 32, 12), unit(rng, 32, prompts, 12), *map(jnp.float32, scalars)
    everything = tuple(range(len(arguments)))
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=everything))
    mesh = Mesh(jax.devices(), ("data",))
    sharded = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in arguments[:2]]
    actual = value_and_grad(*sharded, *arguments[2:])
    expected = value_and_grad(*arguments)
    assert len(actual[1][0].sharding.device_set) == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), actual, expected
    )


def test_normalize_gives_unit_rows_and_survives_a_zero_row():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalize(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: normalize(x).sum())(x)).all()
