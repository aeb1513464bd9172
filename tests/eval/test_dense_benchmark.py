"""`python -m benchmarks.evaluation --dense`, with a small model on one image."""

import functools
import json
import sys

from small_clip import small_clip

from benchmarks import dense_race, evaluation, segmentation_race


def test_the_benchmark_of_dense_clip_finds_the_labels_of_torch(monkeypatch, capsys):
    monkeypatch.setattr(dense_race, "random_clip", lambda: small_clip(patch=16, image=224))
    monkeypatch.setitem(segmentation_race.SIZES, "voc", [(60, 80)])
    few = functools.partial(evaluation.computed_windows, images=40, processes=2, devices=1)
    monkeypatch.setattr(evaluation, "computed_windows", few)
    command = "evaluation --benchmarks --dense voc --repeats 1"
    monkeypatch.setattr(sys, "argv", command.split())

    evaluation.main()

    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    values = {figure["metric"].removeprefix("evaluation/"): figure["value"] for figure in figures}
    assert values["ade20k/computed_windows"] >= 1
    assert (
        values["naclip_voc/images_per_second"] > 0 and values["naclip_voc/speedup_over_torch"] > 0
    )
    assert values["naclip_voc/identical_labels"] >= 0.999  # 4,800 pixels; ties may be rounded
    assert values["naclip_voc/logit_difference"] < 1e-4
