"""An encoded image and its random numbers in, the square picture of the batch out."""

import dataclasses

import tensorflow as tf
from jaxtyping import Float, UInt8, UInt64

from cocu_jax.input import crop, randaugment
from cocu_jax.input.draws import uniforms

_PICTURE_DRAW = 2


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Decodes and augments.

    Attributes:
        augment: "none", "crop" or "full", see `InputConfig`.
        size: side of the pictures.
        area: smallest and largest share of the image that a crop takes.
    """

    augment: str
    size: int
    area: tuple[float, float]

    def draw(self, stream: UInt64[tf.Tensor, "b"]) -> Float[tf.Tensor, "b n"]:
        """What the augmentation of many pictures depends on: draws from [0, 1) of each stream."""
        count = {
            "none": 0,
            "crop": crop.NUM_DRAWS,
            "full": crop.NUM_DRAWS + randaugment.NUM_DRAWS,
        }[self.augment]
        return uniforms(stream, _PICTURE_DRAW, count)

    def __call__(
        self, encoded: tf.Tensor, draws: Float[tf.Tensor, "n"]
    ) -> UInt8[tf.Tensor, "size size 3"]:
        """Makes one picture from an image file of any kind that `images` reads, and its draws."""
        if self.augment == "none":
            return crop.whole_image(encoded, self.size)
        picture = crop.random_crop(encoded, draws[: crop.NUM_DRAWS], self.size, self.area)
        if self.augment == "crop":
            return picture
        return randaugment.randaugment(picture, draws[crop.NUM_DRAWS :])

    def blank(self) -> UInt8[tf.Tensor, "size size 3"]:
        """What stands for an image that cannot be decoded."""
        return tf.zeros([self.size, self.size, 3], tf.uint8)
