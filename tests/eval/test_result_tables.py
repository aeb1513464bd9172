"""Methods side by side, and published figures beside ours."""

import pytest

from eval.benchmarks import benchmarks
from eval.published import find_published, published
from eval.report import format_results

CLIP = "openai/clip-vit-base-patch16"


def result(benchmark, miou, checkpoint=CLIP, protocol="naclip", dense="naclip", **changes):
    shown = {"protocol": protocol} if protocol != "groupvit" else {}
    shown |= {"dense": dense} if dense not in (None, "naclip") else {}
    settings = {"protocol": protocol, "dense": dense, "pamr": changes.get("pamr", False)}
    return {
        "title": benchmarks()[benchmark].title, "benchmark": benchmark, "checkpoint": checkpoint,
        "settings": settings, "changes": shown | changes, "images": 9, "official_images": 9,
        "miou": miou, "pixel_accuracy": 0.5, "class_accuracy": 0.5, "group_bound_miou": None,
        "constant_miou": 0.1, "iou": {"dog": 0.25}, "accuracy": {"dog": 1.0},
    }  # fmt: skip


def test_methods_are_listed_side_by_side_with_published_figures_in_brackets():
    groupvit = "nvidia/groupvit-gcc-yfcc"
    results = {
        "ade20k-naclip": result("ade20k", 0.171),
        "voc-naclip": result("voc", 0.58),
        "ade20k-sclip": result("ade20k", 0.16, dense="sclip"),
        "ade20k-softmax": result("ade20k", 0.17, softmax=True),
        "voc": result("voc", 0.52, groupvit, "groupvit", None),
    }
    table = format_results(results)[1].partition("## Methods side by side")[2].splitlines()
    assert "| method | voc | ade20k |" in table
    assert f"| {CLIP}, dense=naclip, protocol=naclip | 58.0 (58.9) | 17.1 (17.4) |" in table
    assert f"| {CLIP}, dense=sclip, protocol=naclip |  | 16.0 (16.1) |" in table
    assert f"| {CLIP}, dense=naclip, protocol=naclip, softmax=True |  | 17.0 |" in table
    assert f"| {groupvit} | 52.0 (52.3) |  |" in table
    (sources,) = (line for line in table if line.startswith("mIoU in %"))
    assert "README of NVlabs/GroupViT" in sources and "PH-Reg" in sources


def test_a_single_method_without_published_figures_has_no_such_table():
    own = {"voc": result("voc", 0.5, "runs/mine", "groupvit", None)}
    assert "side by side" not in format_results(own)[1]


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({}, 17.4),
        ({"pamr": True}, 19.05),
        ({"class_names": "cls_ade20k"}, 17.4),
        ({"dense": "clearclip"}, 16.7),
        ({"checkpoint": "runs/clip.pt"}, None),
        ({"checkpoint": "openai/clip-vit-base-patch32"}, None),
        ({"checkpoint": "ViT-B-16.pt"}, 17.4),
        ({"protocol": "groupvit"}, None),
        ({"mode": "whole"}, None),
        ({"bg_thresh": 0.2}, None),
    ],
)
def test_published_figures_are_of_the_same_method_model_and_protocol(changes, expected):
    row = find_published(result("ade20k", 0.1, **changes))
    assert (row and row["miou"]["ade20k"]) == expected


def test_published_rows_name_known_benchmarks_and_sources():
    for row in published()["rows"]:
        assert row["miou"].keys() <= benchmarks().keys()
        assert row["source"] in published()["sources"]
        assert all(1 < value < 100 for value in row["miou"].values())
