"""Label maps in the benchmarks' own format, and the colours."""

import numpy as np
import pytest
from PIL import Image

from data_prep.segmentation import ids
from data_prep.segmentation.masks import read_colour_ids, read_ids
from eval.benchmarks import get_benchmark, prepared_benchmarks
from eval.palettes import class_colours, distinct_colours, voc_colours
from eval.pictures import renumber
from eval.report import format_results
from eval.submission import write_prediction

TABLES = {
    "voc": ids.plain(21),
    "context": ids.plain(60),
    "coco_object": ids.coco_object_made(),
    "imagenet_s_50": ids.imagenet_s(51),
    "imagenet_s_300": ids.imagenet_s(301),
    "imagenet_s_919": ids.imagenet_s(920),
    "cityscapes": ids.cityscapes(),
    "ade20k": ids.ade20k(),
    "coco_stuff": ids.coco_stuff(),
}


@pytest.mark.parametrize("name", prepared_benchmarks())
def test_written_predictions_read_back_as_the_benchmarks_masks(name, tmp_path):
    classes = len(get_benchmark(name).classes)
    labels = np.random.default_rng(0).integers(0, classes, (20, 30))
    ids = get_benchmark(name).submission_ids
    write_prediction(tmp_path, "image", labels, ids, class_colours(name, classes))
    read = read_colour_ids if classes > 256 else read_ids
    np.testing.assert_array_equal(TABLES[name][read(tmp_path / "image.png")], labels)


def test_palettes_are_the_official_ones(tmp_path):
    colours = voc_colours(256)
    known = {1: (128, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {number: tuple(colours[number].tolist()) for number in known} == known
    labels = np.arange(19).reshape(1, 19)
    ids = get_benchmark("cityscapes").submission_ids
    write_prediction(tmp_path, "image", labels, ids, class_colours("cityscapes", 19))
    shown = np.asarray(Image.open(tmp_path / "image.png").convert("RGB"))[0]
    assert tuple(shown[0]) == (128, 64, 128) and tuple(shown[10]) == (70, 130, 180)


@pytest.mark.parametrize("count", [2, 20, 60])
def test_distinct_colours_differ(count):
    colours = distinct_colours(count).astype(int)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1)
    assert distance[~np.eye(count, dtype=bool)].min() >= 15


def test_groups_are_numbered_by_size():
    groups = np.array([[900, 900, 7], [900, 256, 7]])
    np.testing.assert_array_equal(renumber(groups), [[0, 0, 1], [0, 2, 1]])


def test_tables_show_percentages_dashes_and_incomplete_splits():
    figures = {
        "title": "Some benchmark", "images": 3, "official_images": 1449, "miou": 0.12345,
        "pixel_accuracy": 0.5, "class_accuracy": None, "group_bound_miou": 0.9,
        "constant_miou": 0.01,
        "iou": {"dog": 0.25, "cat": None}, "accuracy": {"dog": 1, "cat": None},
    }  # fmt: skip
    terminal, markdown = format_results({"some": figures, "imagenet": {
        "title": "ImageNet", "images": 50_000, "official_images": 50_000, "top1": 0.4, "top5": 0.7,
    }})  # fmt: skip
    row = next(line for line in terminal.splitlines() if line.startswith("Some benchmark"))
    assert row.split()[2:] == ["3*", "12.3", "50.0", "-", "90.0", "1.0"]
    assert "| ImageNet | 50,000 | 40.0 | 70.0 |" in markdown
    assert "| dog | 25.0 | 100.0 |" in markdown and "| cat | - | - |" in markdown
    assert "not the whole official split" in terminal
