"""Segments images into any classes that can be named.

    python -m cocu_jax.segment photo.jpg --classes "dog, grass, sky"
    python -m cocu_jax.segment gs://bucket/photos/ --classes names.txt --output gs://bucket/out

Images are files, folders, or patterns ("photos/*.jpg"), local or in a bucket. The command writes
these files to --output for each image:

    photo_overlay.png    the classes in colour over the image, with a legend
    photo_labels.png     an indexed PNG with the class number of every pixel
    photo.json           number, name, colour and share of every class
    photo_groups_1.png   for a GroupViT: the groups of its first stage
    photo_groups_2.png   for a GroupViT: the groups of its last stage
    photo_scores.npz     with --scores: class scores (float16, at the size of the model's input)
    photo_masks.json     with --masks coco: a run-length encoded mask of every class
"""

import argparse
import collections
import io
import json
import os
import re
import sys
from collections.abc import Iterator

import numpy as np
from etils import epath
from pycocotools import mask as coco_mask

from cocu_jax.errors import UserError
from cocu_jax.files import expand_path, write_file
from cocu_jax.host_tensorflow import keep_off_accelerators  # before what imports TensorFlow
from cocu_jax.input.images import read_image
from cocu_jax.segmentation import DEFAULT_CHECKPOINT, Segmentation, Segmenter
from eval.class_names import read_class_names
from eval.palettes import distinct_colours
from eval.pictures import draw_overlay, renumber
from eval.protocol import DENSE, TEMPLATE_SETS
from eval.submission import write_prediction

_ENDINGS = {
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2",
}  # fmt: skip
_WRITTEN = re.compile(r"(.+)_(overlay|labels|groups_[12])\.png")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cocu_jax.segment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", help="image files, folders, or patterns")
    parser.add_argument(
        "--classes",
        required=True,
        help='class names, e.g. "dog, grass, sky", or a text file with one name per line',
    )
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help="training run or RUN@STEP, folder or hub id of a GroupViT or a CLIP, or an authors' "
        f".pth or .pt file; default: {DEFAULT_CHECKPOINT}",
    )
    parser.add_argument(
        "--output", default=".", help="directory for the results; default: the current directory"
    )
    parser.add_argument(
        "--background",
        type=float,
        metavar="THRESHOLD",
        help="add a background class for pixels whose best score is below this, e.g. 0.95",
    )
    add_model_options(parser, clip_templates="full")
    parser.add_argument(
        "--dense",
        default="",
        choices=("", *DENSE),
        help="method that turns a CLIP into a segmenter; default: naclip",
    )
    parser.add_argument("--scores", action="store_true", help="also write class scores")
    parser.add_argument(
        "--masks", choices=["coco"], help="also write run-length encoded masks in COCO's format"
    )
    options = parser.parse_args(arguments)
    keep_off_accelerators()
    try:
        failures = segment_files(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if failures else 0


def add_model_options(parser: argparse.ArgumentParser, clip_templates: str) -> None:
    """Adds the options that this command shares with the app: prompts, window and image size.

    Args:
        parser: the parser of the command.
        clip_templates: the set of prompt templates that is the default for a CLIP.
    """
    parser.add_argument(
        "--templates",
        default="",
        choices=("", *TEMPLATE_SETS),
        help=f"set of prompt templates; default: {clip_templates} for a CLIP, simple for a "
        "GroupViT",
    )
    parser.add_argument(
        "--crop",
        type=int,
        default=0,
        help="side of the sliding window in pixels; default: depends on the model",
    )
    parser.add_argument(
        "--short_side",
        type=int,
        default=0,
        help="short side of the resized image in pixels; default: depends on the model",
    )


def segment_files(options: argparse.Namespace) -> int:
    """Segments all images and writes the results.

    Returns:
        The number of images that could not be read.

    Raises:
        UserError: the classes or the checkpoint cannot be read, or a file cannot be written.
    """
    classes = parse_classes(options.classes)
    images = name_outputs(find_images(options.images))
    output = make_output(options.output)
    failures = []

    def photos() -> Iterator[tuple[str, np.ndarray]]:
        for name in images:
            try:
                yield name, read_image(name)
            except UserError as error:  # continue with the next image
                print(f"error: {error}", file=sys.stderr)
                failures.append(name)

    segmenter = Segmenter.load(
        options.checkpoint,
        classes,
        background=options.background,
        templates=options.templates,
        crop=options.crop,
        short_side=options.short_side,
        dense=options.dense,
        with_groups=True,
    )
    for result in segmenter.stream(photos()):
        write_files(result, output, images[result.name], options)
    return len(failures)


def parse_classes(text: str) -> tuple[str, ...]:
    """Parses class names from a comma-separated list, or reads them from a file.

    Raises:
        UserError: there is no such file, there are no names, or a name is listed twice.
    """
    if looks_like_file(text):
        return read_class_names(text)
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    if not names:
        raise UserError('--classes is empty; write names, e.g. --classes "dog, grass, sky"')
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--classes: {twice[0]!r} is listed more than once; keep one")
    return names


def looks_like_file(text: str) -> bool:
    """Whether `--classes` is a file: an existing one, or a path without a comma."""
    if "," in text:
        return False
    path = epath.Path(expand_path(text))
    return bool(text.strip()) and (path.is_file() or "/" in text or bool(path.suffix.strip(". ")))


def find_images(names: list[str]) -> list[str]:
    """Expands folders and patterns to image files, without duplicates.

    Pictures that this command has written (those with a JSON file beside them) are skipped in
    folders and patterns.

    Raises:
        UserError: a folder has no images, or no file matches a pattern.
    """
    found = []
    for name in names:
        name = expand_path(name)
        path = epath.Path(name)
        if path.is_dir():
            own = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS)
            reason = "there are no images in this folder"
        elif (pattern := re.search(r"[^/]*[*?[].*", name)) and not path.exists():
            base = epath.Path(name[: pattern.start()] or ".")
            own, reason = sorted(base.glob(pattern.group())), "no file matches"
        else:
            own, reason = [path], ""
        if own != [path]:
            own = [photo for photo in own if not _is_written(photo)]
        if not own:
            raise UserError(f"{name}: {reason}; name image files, folders or patterns")
        found += [os.fspath(p) for p in own]
    return list(dict.fromkeys(found))


def _is_written(photo: epath.Path) -> bool:
    name = _WRITTEN.fullmatch(photo.name)
    return bool(name) and (photo.parent / f"{name.group(1)}.json").exists()


def name_outputs(images: list[str]) -> dict[str, str]:
    """Maps each image to the stem of its output files.

    Raises:
        UserError: two images in different folders have the same name.
    """
    stems = collections.Counter(epath.Path(name).stem for name in images)
    names = {}
    for name in images:
        path = epath.Path(name)
        ending = path.suffix.removeprefix(".")
        names[name] = path.stem if stems[path.stem] == 1 else f"{path.stem}_{ending}"
    twice = [stem for stem, count in collections.Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(
            f"{twice[0]}: the results of two images of this name would overwrite each other; "
            "run the command once for each folder, with a different --output"
        )
    return names


def make_output(folder: str) -> epath.Path:
    """Creates the directory for the results.

    Raises:
        UserError: it cannot be created.
    """
    output = epath.Path(expand_path(folder))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{output}: cannot create this directory ({error.strerror}); choose another --output"
        ) from None
    return output


def write_files(
    result: Segmentation, output: epath.Path, stem: str, options: argparse.Namespace
) -> None:
    """Writes the results of one image, and prints its most frequent classes.

    Raises:
        UserError: a file cannot be written.
    """
    _write_picture(output / f"{stem}_overlay.png", result.overlay())
    for stage, groups in enumerate((result.prediction.first_groups, result.prediction.groups), 1):
        if groups is not None:
            groups = renumber(groups)
            tints = distinct_colours(int(groups.max()) + 1, start=0.1)
            picture = draw_overlay(result.picture, groups, tints)
            _write_picture(output / f"{stem}_groups_{stage}.png", picture)
    ids = range(len(result.classes))
    write_prediction(output, f"{stem}_labels", result.labels, ids, result.colours)
    if options.scores:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, scores=result.scores, classes=np.array(result.classes))
        write_file(output / f"{stem}_scores.npz", buffer.getvalue())
    if options.masks:
        write_file(output / f"{stem}_masks.json", json.dumps(coco_masks(result)))
    found = [
        {"label": label, "name": name, "share": round(share, 4), "colour": colour}
        for label, (name, share, colour) in enumerate(
            zip(result.classes, result.shares, result.colours.tolist(), strict=True)
        )
    ]
    height, width = result.labels.shape
    record = {"image": result.name, "width": width, "height": height, "classes": found}
    write_file(output / f"{stem}.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    largest = sorted(found, key=lambda entry: -entry["share"])[:3]
    summary = ", ".join(f"{entry['name']} {entry['share']:.0%}" for entry in largest)
    print(f"{output / stem}_overlay.png  {summary}")


def coco_masks(result: Segmentation) -> dict:
    """The mask of every class in the image, in COCO's results format with class names."""
    annotations = []
    for label in np.flatnonzero(result.shares).tolist():
        encoded = coco_mask.encode(np.asfortranarray(result.labels == label).view(np.uint8))
        annotations.append(
            {
                "category_id": label,
                "category_name": result.classes[label],
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                "area": int(coco_mask.area(encoded)),
                "bbox": coco_mask.toBbox(encoded).tolist(),
            }
        )
    return {"image": result.name, "annotations": annotations}


def _write_picture(path: epath.Path, picture) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_file(path, buffer.getvalue())


if __name__ == "__main__":
    sys.exit(main())
