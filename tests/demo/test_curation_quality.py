"""Precision and recall of curated concepts, against a count by hand and a slow set-based one."""

import math

import numpy as np
import pytest

from cocu_jax.demo.curation_quality import curation_quality

STUFF = [3, 4]


def test_a_case_counted_by_hand():
    true = [[0, 3], [1, 2, 4], [2, 4]]
    captioned = [[0], [1], [2, 4]]
    curated = [[0, 3, 9, 4], [1, 4], [5, 6, 7, 2]]  # the fourth of a row does not count
    scores = curation_quality(curated, true, captioned, STUFF)
    assert scores["curated"] == pytest.approx(
        {
            "precision": 4 / 8,
            "precision_bound": (2 + 2 + 2) / 8,
            "recall": 4 / 7,
            "recall_things": 2 / 4,
            "recall_stuff": 2 / 3,
            "recall_omitted": 2 / 3,
            "recall_omitted_stuff": 2 / 2,
        }
    )
    assert scores["caption"]["precision"] == 1.0
    assert scores["caption"]["recall"] == pytest.approx(4 / 7)
    assert scores["caption"]["recall_stuff"] == pytest.approx(1 / 3)
    assert scores["caption"]["recall_omitted"] == 0.0
    assert scores["omitted"] == pytest.approx({"things": 1 / 4, "stuff": 2 / 3})


def test_random_concepts_agree_with_sets():
    rng = np.random.default_rng(0)
    draw = lambda low, high: rng.choice(12, size=rng.integers(low, high), replace=False).tolist()  # noqa: E731
    true = [draw(1, 5) for _ in range(60)]
    captioned = [row[: rng.integers(1, len(row) + 1)] for row in true]
    curated = [draw(0, 7) for _ in true]
    scores = curation_quality(curated, true, captioned, STUFF, top=2)["curated"]
    best = [set(row[:2]) for row in curated]
    hits = sum(len(row & set(real)) for row, real in zip(best, true, strict=True))
    gaps = [set(real) - set(said) for real, said in zip(true, captioned, strict=True)]
    stuff_gaps = [gap & set(STUFF) for gap in gaps]
    assert scores["precision"] == pytest.approx(hits / sum(map(len, best)))
    assert scores["recall"] == pytest.approx(hits / sum(map(len, true)))
    for name, missing in (("recall_omitted", gaps), ("recall_omitted_stuff", stuff_gaps)):
        found = sum(len(row & gap) for row, gap in zip(best, missing, strict=True))
        assert scores[name] == pytest.approx(found / sum(map(len, missing)))


def test_nothing_to_count_is_not_a_number():
    scores = curation_quality([[]], [[0]], [[0]], STUFF)
    assert math.isnan(scores["curated"]["precision"])
    assert math.isnan(scores["curated"]["recall_stuff"])
    assert scores["curated"]["recall"] == 0.0
