"""Segments any image with any words.

    python -m cocu_jax.segment photo.jpg --classes "dog, grass, sky" --checkpoint runs/cocu

For each image it writes, beside each other in --output:

    photo_overlay.png    the image under its classes, with a legend
    photo_groups_1.png   what the model grouped in its first stage
    photo_groups_2.png   and in its last
    photo_labels.png     an indexed PNG: class number of every pixel
    photo.json           class numbers, names, colours and shares
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
import tensorflow as tf
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.input.images import read_image
from cocu_jax.models.tokenizer import Tokenizer
from eval.checkpoint import load_checkpoint
from eval.class_embeddings import read_class_names
from eval.groups import GroupMethod
from eval.images import EvaluatedImage, resize_uint8
from eval.palettes import distinct_colours
from eval.pictures import add_legend, draw_overlay, renumber
from eval.prediction import Prediction, predict
from eval.protocol import TEMPLATE_SETS, Protocol
from eval.segmenter import make_segmenter
from eval.submission import write_prediction


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cocu_jax.segment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument(
        "--classes", required=True, help='"dog, grass, sky", or a text file with one name a line'
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a training run, a Hugging Face folder or hub id, or an authors' .pth file",
    )
    parser.add_argument("--output", default=".", help="directory; default: the current one")
    parser.add_argument(
        "--background",
        type=float,
        metavar="THRESHOLD",
        help="add a background class, for pixels that score less; e.g. 0.95",
    )
    parser.add_argument("--templates", default="simple", choices=TEMPLATE_SETS, help="prompts")
    parser.add_argument(
        "--crop", type=int, default=0, help="window in pixels; default 448, or a small model's size"
    )
    parser.add_argument(
        "--short_side", type=int, default=0, help="images are resized to this; default: the window"
    )
    options = parser.parse_args(arguments)
    try:
        segment_files(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def segment_files(options: argparse.Namespace) -> None:
    """Segments every image and writes its files.

    Raises:
        UserError: an image, the classes or the checkpoint cannot be read.
    """
    has_background = options.background is not None
    classes = parse_classes(options.classes)
    if has_background and "background" in classes:
        raise UserError("--background adds a class of that name; take it out of --classes")
    classes = ("background", *classes) if has_background else classes
    output = make_output(options.output, options.images)
    pixels = {name: read_image(name) for name in options.images}
    model, processing = load_checkpoint(options.checkpoint)
    size = model.config.image_size
    crop = options.crop or (448 if size == 224 else size)
    protocol = Protocol(
        crop=crop,
        stride=max(crop // 2, 1),
        resize_long_short=(2048, options.short_side or crop),
        has_background=has_background,
        bg_thresh=options.background,
        templates=options.templates,
        mean=processing.mean,
        std=processing.std,
    )
    segmenter = make_segmenter(
        model, classes, protocol, Tokenizer(), method=GroupMethod(protocol, with_first=True)
    )
    images = (
        EvaluatedImage(name, resize(image, protocol), image.shape[:2])
        for name, image in pixels.items()
    )
    for prediction in predict(segmenter, images):
        write_files(prediction, pixels[prediction.key], classes, output)


def parse_classes(text: str) -> tuple[str, ...]:
    """Class names from a comma list, or from the file of this name.

    Raises:
        UserError: no names, or a name twice.
    """
    if epath.Path(text).is_file() or text.endswith(".txt"):
        return read_class_names(text)
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    if not names:
        raise UserError('--classes is empty; write names, e.g. --classes "dog, grass, sky"')
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--classes: {twice[0]!r} is there more than once; keep one")
    return names


def make_output(folder: str, images: list[str]) -> pathlib.Path:
    """The directory for the files of all images.

    Raises:
        UserError: it cannot be made, or two images have the same name.
    """
    stems = [pathlib.Path(name).stem for name in images]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise UserError(
            f"{twice[0]}: two images of this name would overwrite each other's files; "
            "segment them one by one with another --output"
        )
    output = pathlib.Path(folder)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{output}: no directory there ({error.strerror}); choose another --output"
        ) from None
    return output


def resize(image: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Resizes to the protocol's size."""
    return resize_uint8(tf.constant(image), tf.constant(protocol.resized(*image.shape[:2]))).numpy()


def write_files(
    prediction: Prediction, image: np.ndarray, classes: tuple[str, ...], output: pathlib.Path
) -> None:
    """Writes the files of one image, and says what is in it."""
    stem = pathlib.Path(prediction.key).stem
    colours = distinct_colours(len(classes))
    shares = np.bincount(prediction.labels.reshape(-1), minlength=len(classes))
    shares = (shares / prediction.labels.size).tolist()
    overlay = add_legend(draw_overlay(image, prediction.labels, colours), classes, colours, shares)
    overlay.save(output / f"{stem}_overlay.png")
    for stage, groups in enumerate((prediction.first_groups, prediction.groups), start=1):
        groups = renumber(groups)
        picture = draw_overlay(image, groups, distinct_colours(int(groups.max()) + 1, start=0.1))
        picture.save(output / f"{stem}_groups_{stage}.png")
    write_prediction(output, f"{stem}_labels", prediction.labels, range(len(classes)), colours)
    found = [
        {"label": label, "name": name, "share": round(share, 4), "colour": colour}
        for label, (name, share, colour) in enumerate(
            zip(classes, shares, colours.tolist(), strict=True)
        )
    ]
    height, width = prediction.labels.shape
    record = {"image": prediction.key, "width": width, "height": height, "classes": found}
    (output / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n")
    largest = sorted(found, key=lambda entry: -entry["share"])[:3]
    summary = ", ".join(f"{entry['name']} {entry['share']:.0%}" for entry in largest)
    print(f"{output / stem}_overlay.png  {summary}")


if __name__ == "__main__":
    sys.exit(main())
