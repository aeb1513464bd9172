"""Normalisation and random erasing on the device, the same on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from cocu_jax.input.augment import device_augment, erased_block

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(count=16, size=24):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def augment(batch, mode, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(batch))
    return device_augment(batch, keys, mode=mode, mean=MEAN, std=STD)


@pytest.mark.parametrize("mode", ["none", "crop"])
def test_images_are_normalised(mode):
    want = (images() / 255.0 - MEAN) / STD
    np.testing.assert_allclose(augment(images(), mode), want, rtol=1e-5, atol=1e-5)


def test_only_erased_pixels_change_and_become_noise():
    batch = images(256)
    plain, got = augment(batch, "none"), augment(batch, "full")
    changed = np.any(np.asarray(plain != got), axis=-1)
    of_image = changed.mean(axis=(1, 2))
    assert 0.15 < np.mean(of_image > 0) < 0.35
    noise = np.asarray(got)[changed]
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    for block in changed[of_image > 0]:
        rows, columns = block.any(axis=1), block.any(axis=0)
        assert block.sum() == rows.sum() * columns.sum()  # one full rectangle


def test_rectangles_are_distributed_as_specified():
    uniform = np.random.default_rng(0).random((4000, 41), np.float32)
    block = np.asarray(erased_block(uniform, 64, 64))
    erased = block.any(axis=(1, 2))
    assert abs(erased.mean() - 0.25) < 0.03
    rows, columns = block.any(axis=2)[erased], block.any(axis=1)[erased]
    height, width = rows.sum(axis=1), columns.sum(axis=1)
    assert height.max() < 64 and width.max() < 64
    area = height * width / 64**2
    assert 0.015 < area.min() < 0.03 and 0.3 < area.max() < 0.35
    assert stats.kstest(area[area < 0.25], stats.uniform(0.02, 0.23).cdf).pvalue > 1e-4
    small = area < 0.08  # fits at any ratio; larger ones are drawn again
    bound = np.log(1 / 0.3)
    assert (
        stats.kstest(np.log(height / width)[small], stats.uniform(-bound, 2 * bound).cdf).pvalue
        > 1e-4
    )
    top = rows.argmax(axis=1)
    assert abs(np.mean(top / (64 - height)) - 0.5) < 0.03


def test_the_result_does_not_depend_on_the_number_of_devices():
    step = jax.jit(lambda batch: augment(batch, "full"))
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(images(), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(step(sharded), step(jnp.asarray(images())))
    assert not np.array_equal(augment(images(), "full", 0), augment(images(), "full", 1))
