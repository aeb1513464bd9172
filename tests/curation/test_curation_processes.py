"""Curation that is killed, shared and joined again: real processes, identical bytes."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from curation_corpus import encoded, example, write_clip, write_corpus

pytestmark = pytest.mark.slow

IMAGES, SHARDS, KILLS = 300, 12, 20
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def run_round(tmp_path_factory):
    """Runs children at the same time (see `curation_processes`); returns their exit codes."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE}:{HERE.parent}",
        "XLA_FLAGS": "",  # children choose their number of devices
        # What one process compiled the others load: the kills hit work, not compilations.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, HERE / "curation_processes.py"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(*children):
        server.stdin.write(json.dumps(children) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    with subprocess.Popen(command, env=environment, **pipes) as server:
        yield run
        server.stdin.close()


@pytest.fixture(scope="module", params=["exact", "clustered", "bucket"])
def child(request, tmp_path_factory):
    """What all children have in common; the last ones search by cells in a bucket."""
    damaged = encoded(np.zeros((9, 9, 3), np.uint8))[:-30]
    examples = [example(i, damaged if i % 50 == 7 else None) for i in range(IMAGES)]
    corpus = write_corpus(tmp_path_factory.mktemp("data"), examples, SHARDS)
    fields = {
        "corpus.directory": corpus,
        "clip": write_clip(tmp_path_factory.mktemp("clip") / "tiny"),
        "batch_size": 4,
        "page_images": 4,
        "search_rows": 50,
        "search": "exact" if request.param == "exact" else "clustered",
        "cells": 9,
        "staging": str(tmp_path_factory.mktemp("staging")),  # what a kill leaves there goes, too
        "staging_gb": 1e-4,
    }
    return {"config": fields, "bucket": request.param == "bucket"}


@pytest.fixture(scope="module")
def undisturbed(child, run_round, tmp_path_factory):
    """What an undisturbed run hands over, and the seconds that another one takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name in ("first", "second"):
        start = time.monotonic()
        assert run_round({**child, "workdir": str(folder / name)}) == [[0]]
    return result(folder / "second"), time.monotonic() - start


def result(workdir):
    """Bytes of all that a run hands over; hidden files are what a killed writer left."""
    names = ("annotations", "parquet", "embeddings")
    files = [path for name in names for path in sorted(workdir.glob(f"{name}/**/[!.]*"))]
    files += [workdir / name for name in ("examples.html", "summary.json", "summary.txt")]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files if path.is_file()}


def test_kills_at_random_moments_leave_identical_bytes(child, undisturbed, run_round, tmp_path):
    """Moments after a few more files each, since most of a run's time is starting up."""
    expected, _ = undisturbed
    moments, kills, embedding, annotating = random.Random(0), 0, 0, 0
    while kills < KILLS:
        workdir = tmp_path / str(kills)
        codes, there = None, 0
        while codes != [[0]]:
            moment = {
                "files": there + moments.randint(0, SHARDS),
                "kill_after": moments.uniform(0, 0.05),
            }
            codes = run_round({**child, "workdir": str(workdir), **moment})
            assert codes in ([[0]], [[-9]])
            kills += codes == [[-9]]
            there = sum(path.is_file() for path in workdir.rglob("*"))
            embedding += 0 < len(list(workdir.glob("embeddings/*/*/*.safetensors"))) < SHARDS
            annotating += 0 < len(list(workdir.glob("reports/*.json"))) < SHARDS
        assert result(workdir) == expected
    assert embedding > 1 and annotating > 3  # the kills met work of both kinds


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_joined_processes_gives_identical_bytes(
    child, undisturbed, run_round, tmp_path, processes
):
    address = f"localhost:{free_port()}"
    workdir = tmp_path / "run"
    children = [
        {**child, "workdir": str(workdir), "distributed": [address, processes, i]}
        for i in range(processes)
    ]
    assert run_round(*children) == [[0]] * processes
    assert result(workdir) == undisturbed[0]


def test_joined_processes_that_finish_far_apart_leave_cleanly(
    child, undisturbed, run_round, tmp_path
):
    """Farther than the barrier at JAX's shutdown waits, which would abort all of them."""
    address, workdir = f"localhost:{free_port()}", tmp_path / "run"
    child = {**child, "workdir": str(workdir), "shutdown_timeout": 3}
    children = [{**child, "distributed": [address, 2, i], "lingers": 10} for i in range(2)]
    assert run_round(*children) == [[0], [0]]
    assert result(workdir) == undisturbed[0]


def test_two_runs_embed_into_one_directory_at_the_same_time(
    child, undisturbed, run_round, tmp_path
):
    place = "gs://bucket/shared" if child["bucket"] else str(tmp_path / "shared")
    config = {**child["config"], "embeddings": place}
    folders = [tmp_path / name for name in ("one", "other")]
    codes = run_round(*({**child, "config": config, "workdir": str(name)} for name in folders))
    assert codes == [[0], [0]]
    for folder in folders:
        shutil.copytree(tmp_path / "shared", folder / "embeddings")
        assert result(folder) == undisturbed[0]


@pytest.mark.parametrize("devices", [1, 8])
def test_any_number_of_devices_gives_identical_bytes(
    child, undisturbed, run_round, tmp_path, devices
):
    one = {**child, "workdir": str(tmp_path / "run"), "devices": devices}
    assert run_round(one) == [[0]]
    assert result(tmp_path / "run") == undisturbed[0]


@pytest.mark.parametrize(
    ("joined", "dies"), [(False, 0), (False, 1), (True, 1)], ids=["first", "second", "joined"]
)
def test_a_process_that_dies_and_comes_back_is_waited_for(
    child, undisturbed, run_round, tmp_path, joined, dies
):
    expected, seconds = undisturbed
    workdir, address = tmp_path / "run", f"localhost:{free_port()}"
    children = [{**child, "workdir": str(workdir)} for _ in range(2)]
    for i, one in enumerate(children):
        if joined:
            one["distributed"] = [address, 2, i]
        else:
            one["config"] = {**child["config"], "share": f"{i}/2"}
    children[dies] |= {"kill_after": seconds / 3, "comes_back": True}
    codes = run_round(*children)
    assert codes[dies] == [-9, 0] and codes[1 - dies] == [0]
    assert result(workdir) == expected


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
