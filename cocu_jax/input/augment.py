"""Augmentation on the accelerator: normalisation and random erasing.

Batches are sent to the device as uint8. Crops, flips and RandAugment are applied on the host
(`crop`, `randaugment`), because they need gathers, which are slow on a TPU. Noise and arithmetic
are cheap there.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt8

from cocu_jax.imagenet_statistics import IMAGENET_MEAN, IMAGENET_STD

_ERASE_PROBABILITY = 0.25
_ERASE_AREA = (0.02, 1 / 3)
_ERASE_ASPECT = (0.3, 1 / 0.3)
_ATTEMPTS = 10
_BLOCK_DRAWS = 4 * _ATTEMPTS + 1


def device_augment(
    images: UInt8[Array, "b s s 3"],
    keys: Key[Array, "b"],
    *,
    mode: str,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Float[Array, "b s s 3"]:
    """Converts a batch of uint8 images to the model's input; call it inside the jitted step.

    Every image is processed on its own, with its own key, so the result depends neither on its
    place in the batch nor on the number of devices or processes.

    Args:
        images: the `image` of a batch of `train_batches`.
        keys: a typed key (`jax.random.key`) for every image.
        mode: the pipeline's `augment`: "none" and "crop" only normalise; "full" also applies random
            erasing, after normalisation.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].

    Returns:
        float32 images, normalised.
    """
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32)
    shift = jnp.asarray([m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    normalised = images.astype(jnp.float32) * scale - shift
    return random_erasing(normalised, keys) if mode == "full" else normalised


def random_erasing(
    images: Float[Array, "b s s 3"], keys: Key[Array, "b"]
) -> Float[Array, "b s s 3"]:
    """Random erasing (Zhong et al., 2020): replaces a rectangle by N(0, 1) noise per pixel.

    An image is changed with probability 0.25.

    Args:
        images: normalised images.
        keys: a typed key for every image.
    """

    def draw(key: Key[Array, ""]) -> tuple[Array, Array]:
        block_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, images.shape[1:], images.dtype)
        return jax.random.uniform(block_key, (_BLOCK_DRAWS,)), noise

    uniform, noise = jax.vmap(draw)(keys)
    block = erased_block(uniform, *images.shape[1:3])
    return jnp.where(block[..., None], noise, images)


def erased_block(uniform: Float[Array, "b draws"], height: int, width: int) -> Bool[Array, "b h w"]:
    """Mask of the pixels to erase: one rectangle with probability 0.25, drawn as in timm.

    The area is uniform between 0.02 and 1/3 of the image, the logarithm of the aspect ratio (height
    / width) is uniform between those of 0.3 and 1/0.3, and the place is uniform. The first of ten
    attempts that is smaller than the image is used; nothing is erased if there is none.

    Args:
        uniform: 41 draws from [0, 1) for every image.
        height, width: of the images.
    """
    area, ratio, down, right = jnp.split(uniform[:, 1:], 4, axis=1)
    pixels = height * width * (_ERASE_AREA[0] + (_ERASE_AREA[1] - _ERASE_AREA[0]) * area)
    low, high = (math.log(bound) for bound in _ERASE_ASPECT)
    aspect = jnp.exp(low + (high - low) * ratio)
    tall = jnp.round(jnp.sqrt(pixels * aspect))
    wide = jnp.round(jnp.sqrt(pixels / aspect))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    tall, wide, down, right = (
        jnp.take_along_axis(value, first, axis=1) for value in (tall, wide, down, right)
    )
    top = jnp.floor(down * (height - tall + 1))
    left = jnp.floor(right * (width - wide + 1))
    y, x = jnp.arange(height), jnp.arange(width)
    rows = (y >= top) & (y < top + tall)
    columns = (x >= left) & (x < left + wide)
    erased = (uniform[:, 0] < _ERASE_PROBABILITY) & fits.any(axis=1)
    return erased[:, None, None] & rows[:, :, None] & columns[:, None, :]
