"""Decodes and augments an image: an encoded file and random numbers -> a square uint8 image."""

import dataclasses

import tensorflow as tf
from jaxtyping import Float, UInt8, UInt64

from cocu_jax.input import crop, randaugment
from cocu_jax.input.draws import uniforms

_IMAGE_DRAW = 2


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Decodes and augments images.

    Attributes:
        augment: "none", "crop" or "full", see `InputConfig`.
        size: side of the result in pixels.
        area: smallest and largest area of a crop, as a share of the image.
    """

    augment: str
    size: int
    area: tuple[float, float]

    def draw(self, stream: UInt64[tf.Tensor, "b"]) -> Float[tf.Tensor, "b n"]:
        """The random numbers for augmenting many images: n draws from [0, 1) of each stream."""
        count = {
            "none": 0,
            "crop": crop.NUM_DRAWS,
            "full": crop.NUM_DRAWS + randaugment.NUM_DRAWS,
        }[self.augment]
        return uniforms(stream, _IMAGE_DRAW, count)

    def __call__(
        self, encoded: tf.Tensor, draws: Float[tf.Tensor, "n"]
    ) -> UInt8[tf.Tensor, "size size 3"]:
        """Transforms one image, given as a file in any format that `images` reads."""
        if self.augment == "none":
            return crop.whole_image(encoded, self.size)
        image = crop.random_crop(encoded, draws[: crop.NUM_DRAWS], self.size, self.area)
        if self.augment == "crop":
            return image
        return randaugment.randaugment(image, draws[crop.NUM_DRAWS :])

    def blank(self) -> UInt8[tf.Tensor, "size size 3"]:
        """A black image, which replaces one that cannot be decoded."""
        return tf.zeros([self.size, self.size, 3], tf.uint8)
