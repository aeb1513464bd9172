"""Evaluation settings: image sizes, windows, prompts, and how scores become labels."""

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
        mode: how a resized image is passed to the model. "slide": in windows of `crop` every
            `stride` pixels. "whole": at once, cropped to complete patches; `crop` and `stride` are
            not used.
        crop: side of the square window, in pixels of the resized image.
        stride: step of the windows in pixels. The last window is moved back to end at the border.
        resize_long_short: the short side becomes [1], unless the long side would exceed [0]. None:
            images are not resized.
        large_images: images of more than [0] pixels are first resized to a long side of [1],
            without anti-aliasing, and labels are decided at that size. None: no such rule.
        has_background: whether class 0 is the background, which has no text embedding.
        bg_thresh: background is predicted where the best class scores less; None without a
            background class.
        templates: prompt templates: "simple" (1), "subset" (OpenAI's 7), "subset_groupvit" (the 7
            of GroupViT's evaluation, including `a bad photo of a {}.`) or "full" (80).
        softmax: apply a float32 softmax over the classes before the argmax, as the published
            evaluation does. Very small scores become equal, and the lower class wins.
        image_classes: number of classes that a window can contain: those most similar to the
            window as a whole.
        dense: method for a CLIP, one of `DENSE`; not used for a GroupViT.
        logit_scale: factor on a CLIP's similarities before the softmax over words.
        pamr: refine the scores along the colour edges of the image before labels are decided, see
            `eval.pamr`. Label maps larger than a tile (1024 x 2048) are refined tile by tile.
        pamr_dilations: distances of the neighbours that the refinement uses, in pixels.
        mean: mean of the input normalisation, in [0, 1].
        std: standard deviation of the input normalisation, in [0, 1].

    Raises:
        UserError: the settings contradict each other.
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
                "bg_thresh is required with a background class, and not allowed without one; "
                f"got has_background={self.has_background}, bg_thresh={self.bg_thresh}"
            )
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode!r} is not a mode; choose one of {', '.join(MODES)}")
        if self.mode == "whole" and self.resize_long_short is None:
            raise UserError("mode='whole' needs resize_long_short, which bounds the array shapes")
        if self.templates not in TEMPLATE_SETS:
            known = ", ".join(TEMPLATE_SETS)
            raise UserError(
                f"templates={self.templates!r} is not a template set; choose one of {known}"
            )

    def windows(self, length: int) -> tuple[int, int]:
        """Side and step of the windows along an axis of `length` pixels of the resized image."""
        return (length, length) if self.mode == "whole" else (self.crop, self.stride)

    def label_size(self, height: int, width: int) -> tuple[int, int]:
        """Size (height, width) at which the labels of an image of this size are decided."""
        if self.large_images is None or height * width <= self.large_images[0]:
            return height, width
        long = self.large_images[1]
        return tuple(max(side * long // max(height, width), 1) for side in (height, width))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size (height, width) to which an image is resized for the model; keeps the aspect."""
        if self.resize_long_short is None:
            return height, width
        long, short = self.resize_long_short
        scale = min(long / max(height, width), short / min(height, width))
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
