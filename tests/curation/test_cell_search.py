"""Clustered search from the corpus to the annotations."""

import os
import pathlib
import signal

import numpy as np
import pytest
from curation_corpus import curate, encoded, example, examples_of, write_clip, write_corpus

from cocu_jax.curation import cell_search, clustered
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus
from cocu_jax.stopping import Stopped

IMAGES, SHARDS = 120, 6


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    damaged = encoded(np.zeros((9, 9, 3), np.uint8))[:-30]
    examples = [example(i, damaged if i % 40 == 7 else None) for i in range(IMAGES)]
    return {
        "corpus.directory": write_corpus(tmp_path_factory.mktemp("data"), examples, SHARDS),
        "clip": write_clip(tmp_path_factory.mktemp("clip") / "tiny"),
        "neighbours": 5,
        "page_images": 2,
        "embeddings": str(tmp_path_factory.mktemp("embeddings")),
        "search": "clustered",
        "cells": 6,
        "search_rows": 30,
    }


@pytest.fixture(scope="module")
def finished(fields, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, curate(fields, workdir)


def result(workdir):
    names = ("annotations", "parquet")
    files = [path for name in names for path in sorted((pathlib.Path(workdir) / name).iterdir())]
    files += [pathlib.Path(workdir) / name for name in ("summary.json", "examples.html")]
    return {path.name: path.read_bytes() for path in files}


def neighbours(workdir):
    corpus = open_corpus(str(workdir / "annotations"), "train")
    return {e["key"]: e["neighbours"].tolist() for e in examples_of(corpus)}


@pytest.mark.slow
def test_one_cell_gives_what_the_exact_search_gives(fields, tmp_path):
    clustered = curate(fields, tmp_path / "clustered", cells=1)
    curate(fields, tmp_path / "exact", search="exact")
    assert neighbours(tmp_path / "clustered") == neighbours(tmp_path / "exact")
    assert clustered["measured_recall"] == 1


def test_recall_is_measured_and_written_into_summary_and_annotations(fields, finished, tmp_path):
    workdir, summary = finished
    found = neighbours(workdir)
    curate(fields, tmp_path, search="exact")
    truth = neighbours(tmp_path)
    hits = sum(len(set(found[key]) & set(near)) for key, near in truth.items())
    recall = hits / sum(map(len, truth.values()))
    assert 0.75 < recall < 1  # a goal of 0.95 for half of a sample of a hundred
    assert summary["measured_recall"] == pytest.approx(recall, abs=0.1)
    metadata = open_corpus(str(workdir / "annotations"), "train").metadata
    assert metadata["measured_recall"] == summary["measured_recall"]
    assert metadata["config"]["search"] == "clustered"


def test_a_lower_goal_finds_less(fields, finished, tmp_path):
    less = curate(fields, tmp_path, cell_recall=0.4)
    assert less["measured_recall"] < finished[1]["measured_recall"]


def test_stopped_in_a_search_keeps_what_is_found_and_goes_on_to_the_same_bytes(
    fields, finished, tmp_path, monkeypatch
):
    """Stops in the middle of the third of several units, then goes on from that turn."""
    monkeypatch.setattr(clustered, "_TASKS", 1)
    search, units, turns, stop_in = cell_search.search_cells, [], [], 3

    def watched(*args, on_turn, **kwargs):
        units.append(0)

        def stopping(share, state):
            units[-1] += 1
            turns.append(state().turn)
            if len(units) == stop_in and units[-1] == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            on_turn(share, state)

        return search(*args, on_turn=stopping, **kwargs)

    monkeypatch.setattr(cell_search, "search_cells", watched)
    with pytest.raises(Stopped, match="what is found is kept"):
        curate(fields, tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.glob("neighbours/0*")}
    assert len(kept) == 2 and len(list(tmp_path.glob("searches/*"))) == 1
    damaged = max(kept)
    damaged.write_bytes(kept[damaged][:-1] + bytes([kept[damaged][-1] ^ 1]))
    stop_in = None
    units.clear()
    turns.clear()
    curate(fields, tmp_path)
    assert result(tmp_path) == result(finished[0])
    assert len(units) == len(list(tmp_path.glob("neighbours/0*"))) - 1
    assert turns[units[0]] == 3  # of the unit after the damaged one, which has two turns
    assert {path: path.read_bytes() for path in kept} == kept
    assert not list(tmp_path.glob("searches/*"))


def test_pass_size_and_shares_change_nothing(fields, finished, tmp_path):
    curate(fields, tmp_path, search_rows=1_000)
    assert result(tmp_path) == result(finished[0])
    assert len(list(tmp_path.glob("neighbours/0*"))) == 1


@pytest.mark.slow
def test_another_index_is_searched_by_its_own_cells(fields, tmp_path):
    other = write_corpus(tmp_path / "other", [example(1_000 + i) for i in range(70)], shards=3)
    index = ({"directory": other, "split": "train"},)
    workdir = tmp_path / "run"
    curate(fields, workdir, index=index, cells=1)
    curate(fields, tmp_path / "exact", index=index, search="exact")
    assert neighbours(workdir) == neighbours(tmp_path / "exact")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "fast"}, "config.search='fast'"),
        ({"recall": 0.9}, "config.recall=0.9 is for config.search='exact'"),
        ({"cell_recall": 0.0}, "config.cell_recall=0.0"),
        ({"cells": -1}, "config.cells=-1"),
    ],
)
def test_bad_settings_are_one_line(fields, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        curate(fields, tmp_path, **changes)
