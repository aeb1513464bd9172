"""Image preparation of a model, as in Hugging Face's `preprocessor_config.json`."""

from dataclasses import dataclass
from typing import Any

from cocu_jax.errors import UserError
from cocu_jax.imagenet_statistics import IMAGENET_MEAN, IMAGENET_STD

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# PIL's numbers, which are used in Hugging Face's files.
_RESAMPLES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True)
class ImageProcessing:
    """Image preparation: resize to a square, scale to [0, 1], normalise.

    Attributes:
        size: side of the model's square input, in pixels.
        mean: mean of red, green and blue, for values in [0, 1].
        std: standard deviation of red, green and blue, for values in [0, 1].
        keep_aspect: whether the short side is resized and the centre is cropped; otherwise the
            aspect ratio is changed.
        resample: PIL's name of the interpolation.
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    keep_aspect: bool = True
    resample: str = "bicubic"


def imagenet_processing(size: int) -> ImageProcessing:
    """GroupViT's preparation: ImageNet's mean and standard deviation, bilinear."""
    return ImageProcessing(size, IMAGENET_MEAN, IMAGENET_STD, resample="bilinear")


def siglip_processing(size: int) -> ImageProcessing:
    """SigLIP's preparation: resized without keeping the aspect ratio, values in [-1, 1]."""
    return ImageProcessing(size, (0.5,) * 3, (0.5,) * 3, keep_aspect=False)


def read_processing(settings: dict, source: str, image_size: int) -> ImageProcessing:
    """Translates `preprocessor_config.json`, of transformers 4 and 5 or older.

    Args:
        settings: its content; missing values default to SigLIP's for that type, else to CLIP's.
        source: its name, for messages.
        image_size: the model's.

    Raises:
        UserError: it describes an unsupported step, or a size other than the model's.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not settings.get(step, True):
            raise UserError(f"{source}: {step} is off; such a model is not supported")
    if abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise UserError(f"{source}: rescale_factor is not 1/255; not supported")
    siglip = str(settings.get("image_processor_type", "")).startswith("Siglip")
    default = siglip_processing(image_size) if siglip else ImageProcessing(image_size)
    square = {"height": image_size, "width": image_size}
    stated = settings.get("size", image_size if default.keep_aspect else square)
    keep_aspect = not isinstance(stated, dict) or "shortest_edge" in stated
    if keep_aspect and not settings.get("do_center_crop", True):
        raise UserError(f"{source}: do_center_crop is off, so images are not square; not supported")
    size = _side(stated, source)
    cut = _side(settings.get("crop_size", size), source) if keep_aspect else size
    if not size == cut == image_size:
        raise UserError(
            f"{source}: resizes to {size} and crops to {cut} for a model of {image_size}; "
            "only equal sizes are supported"
        )
    names = {number: name for name, number in _RESAMPLES.items()}
    resample = settings.get("resample", _RESAMPLES[default.resample])
    if resample not in names:
        raise UserError(f"{source}: resample {resample} is not one of PIL's; not supported")
    return ImageProcessing(
        size,
        tuple(settings.get("image_mean", default.mean)),
        tuple(settings.get("image_std", default.std)),
        keep_aspect,
        names[resample],
    )


def read_joint_processing(settings: dict, source: str, default: ImageProcessing) -> ImageProcessing:
    """Reads `processor_config.json`, whose images are one of several entries.

    Arguments and errors as `read_processing`, except `default`, which is returned if there is no
    entry for images.
    """
    images = settings.get("image_processor")
    return default if images is None else read_processing(images, source, default.size)


def write_processing(processing: ImageProcessing) -> dict[str, Any]:
    """`preprocessor_config.json` for transformers' `CLIPImageProcessor` or its SigLIP one."""
    square = {"height": processing.size, "width": processing.size}
    kind = "CLIP" if processing.keep_aspect else "Siglip"
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": processing.size} if processing.keep_aspect else square,
        "resample": _RESAMPLES[processing.resample],
        "do_center_crop": processing.keep_aspect,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(processing.mean),
        "image_std": list(processing.std),
    }


def _side(size: int | dict, source: str) -> int:
    """The side of a square, given in the old form (a number) or the new form (a dictionary)."""
    if not isinstance(size, dict):
        return size
    sides = {size[name] for name in ("height", "width", "shortest_edge") if name in size}
    if len(sides) != 1:
        raise UserError(f"{source}: size {size} is not square; not supported")
    return sides.pop()
