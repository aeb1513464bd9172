"""How an image is shown to the model and how its scores become labels, as plain settings."""

import dataclasses
from typing import Literal

from cocu_jax.errors import UserError
from cocu_jax.imagenet_statistics import IMAGENET_MEAN, IMAGENET_STD
from cocu_jax.settings import Flag, PositiveAmount, PositiveCount, Share, only_its_fields

TEMPLATE_SETS = ("simple", "subset", "subset_groupvit", "full")
MODES = ("slide", "whole")
DENSE = ("clip", "maskclip", "sclip", "clearclip", "naclip")  # `dense_clip.VARIANTS`, without JAX


@only_its_fields
@dataclasses.dataclass(frozen=True)
class Protocol:
    """Zero-shot segmentation settings of one benchmark (GroupViT, arXiv 2202.11094).

    Attributes:
        mode: what the model sees of a resized image: "slide": windows of `crop` every `stride`;
            "whole": all of it at once, cut down to whole patches; crop and stride are then unused.
        crop: side of the square window that the model sees, in pixels of the resized image.
        stride: distance of neighbouring windows. The last one is shifted back to end at the border.
        resize_long_short: the short side becomes [1] unless the long side would pass [0]; None
            leaves images as they are.
        large_images: images of more than [0] pixels are first resized to a long side of [1] (not
            smoothed), and labels are decided at that size; None: there is no such rule.
        has_background: class 0 is background and has no text embedding.
        bg_thresh: background wins where the best class scores less (only with a background class).
        templates: prompt templates: "simple", "subset" (OpenAI's 7), "subset_groupvit" (those with
            GroupViT's `a bad photo of a {}.`) or "full" (80).
        softmax: take a float32 softmax over the classes before the best is chosen, as the published
            evaluation does: scores too small to tell apart then tie, and the lower class wins.
        image_classes: how many of the image-level best classes may appear in a window.
        dense: how a CLIP's patches are read, one of `DENSE`; no matter to a GroupViT.
        logit_scale: of a CLIP's similarities before the softmax over words.
        pamr: refine the scores by the colours of the image before labels are decided, see
            `eval.pamr`. Images larger than a piece (1024 x 2048) are refined piece by piece.
        pamr_dilations: distances of the neighbours that refining looks at, in pixels.
        mean: of the model's input normalisation, in [0, 1].
        std: of the model's input normalisation, in [0, 1].
    """

    crop: PositiveCount = 448
    stride: PositiveCount = 224
    resize_long_short: tuple[PositiveCount, PositiveCount] | None = (2048, 448)
    has_background: Flag = False
    bg_thresh: Share | None = None
    templates: Literal[TEMPLATE_SETS] = "simple"
    softmax: Flag = False
    large_images: tuple[PositiveCount, PositiveCount] | None = None
    image_classes: PositiveCount = 5
    dense: Literal[DENSE] = "naclip"
    logit_scale: PositiveAmount = 40.0
    pamr: Flag = False
    pamr_dilations: tuple[PositiveCount, ...] = (1, 2, 4, 8, 12, 24)
    mode: Literal[MODES] = "slide"
    mean: tuple[Share, Share, Share] = IMAGENET_MEAN
    std: tuple[PositiveAmount, PositiveAmount, PositiveAmount] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.crop:
            raise UserError(
                f"stride={self.stride} leaves gaps between windows of {self.crop}; "
                f"choose 1..{self.crop}"
            )
        if self.has_background == (self.bg_thresh is None):
            raise UserError(
                "bg_thresh is for benchmarks with a background class, and those need one; "
                f"got has_background={self.has_background}, bg_thresh={self.bg_thresh}"
            )
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode!r} is no mode; choose one of {', '.join(MODES)}")
        if self.mode == "whole" and self.resize_long_short is None:
            raise UserError("mode='whole' needs resize_long_short: programs are made for its sizes")
        if self.templates not in TEMPLATE_SETS:
            known = ", ".join(TEMPLATE_SETS)
            raise UserError(
                f"templates={self.templates!r} is no template set; choose one of {known}"
            )

    def windows(self, length: int) -> tuple[int, int]:
        """Side and distance of the windows along an axis of this many resized pixels."""
        return (length, length) if self.mode == "whole" else (self.crop, self.stride)

    def decided(self, height: int, width: int) -> tuple[int, int]:
        """Size (height, width) at which labels are decided."""
        if self.large_images is None or height * width <= self.large_images[0]:
            return height, width
        long = self.large_images[1]
        return tuple(max(side * long // max(height, width), 1) for side in (height, width))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Size (height, width) that the model sees of an image of this size; aspect is kept."""
        if self.resize_long_short is None:
            return height, width
        long, short = self.resize_long_short
        scale = min(long / max(height, width), short / min(height, width))
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
