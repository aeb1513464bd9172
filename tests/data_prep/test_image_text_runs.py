"""Runs that stop go on; several processes give what one gives."""

import collections
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import raw_corpora as raw
from etils import epath
from PIL import Image
from prepared_corpora import examples, keys_and_captions, prepare, report
from test_last_phase import contents

from cocu_jax.errors import UserError
from cocu_jax.stopping import Stopped
from data_prep.image_text.units import UnitPreparer
from data_prep.image_text.work import Work, Workers, do_work


def test_stopped_run_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    for number in range(4):
        raw.webdataset(tmp_path / f"{number}.tar", range(3 * number, 3 * number + 3))
    expected = keys_and_captions(prepare(tmp_path / "at once", tmp_path / "*.tar"))

    done = []
    original = UnitPreparer.prepare

    def failing(self, unit, target):
        if len(done) == 2:
            raise RuntimeError("the machine is gone")
        done.append(unit.path)
        original(self, unit, target)

    monkeypatch.setattr(UnitPreparer, "prepare", failing)
    with pytest.raises(UserError, match="the machine is gone"):
        prepare(tmp_path, tmp_path / "*.tar")
    with pytest.raises(UserError, match="begun with other sources or settings"):
        prepare(tmp_path, tmp_path / "{0..2}.tar")
    monkeypatch.setattr(UnitPreparer, "prepare", lambda *a: (done.append(a[1].path), original(*a)))
    directory = prepare(tmp_path, tmp_path / "*.tar")
    assert keys_and_captions(directory) == expected
    assert sorted(done) == [str(tmp_path / f"{number}.tar") for number in range(4)]


def test_stop_request_keeps_finished_units(tmp_path, monkeypatch):
    for number in range(3):
        raw.webdataset(tmp_path / f"{number}.tar", [number])
    done, original = [], UnitPreparer.prepare

    def watched(self, unit, target):
        original(self, unit, target)
        done.append(unit.path)
        if len(done) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2)  # the stop is passed on every half second

    monkeypatch.setattr(UnitPreparer, "prepare", watched)
    with pytest.raises(
        Stopped, match="stopped after 1 of 3 files; run the same command to continue"
    ):
        prepare(tmp_path, tmp_path / "*.tar")
    assert len(done) == 1
    assert len(keys_and_captions(prepare(tmp_path, tmp_path / "*.tar"))) == 3
    assert sorted(done) == [str(tmp_path / f"{number}.tar") for number in range(3)]  # none twice


def test_what_has_been_done_is_seen_by_one_listing_of_the_folder(tmp_path, monkeypatch):
    """Ten thousands of files are looked for every half second."""
    names = [(f"{number}.a", f"{number}.b") for number in range(300)]
    for name in itertools.chain(*names[:299]):
        (tmp_path / name).touch()
    folder, calls = epath.Path(tmp_path), collections.Counter()
    for name in ("iterdir", "exists"):
        original = getattr(type(folder), name)

        def counted(self, name=name, original=original):
            calls[name] += 1
            return original(self)

        monkeypatch.setattr(type(folder), name, counted)
    tasks, done = [(number,) for number in range(300)], []

    def do(number):
        done.append(number)
        for name in names[number]:
            (tmp_path / name).touch()

    do_work(Work("", "", lambda: do, tasks, folder, names), Workers(), folder / "stop")
    assert done == [299]
    assert calls["iterdir"] <= 4 and calls["exists"] <= 4


def test_files_that_do_not_appear_are_told(tmp_path, monkeypatch):
    """Workers that write to disks of their own."""
    monkeypatch.setattr("data_prep.image_text.work._LAG_SECONDS", 0.1)
    work = Work("", "files", lambda: print, [(0,), (1,)], epath.Path(tmp_path), [("a",), ("b",)])
    with pytest.raises(UserError, match=f"{tmp_path}: lacks 2 of the 2 files .* same place"):
        do_work(work, Workers(), epath.Path(tmp_path) / "stop")


def test_source_that_a_worker_does_not_have_is_no_damage(tmp_path, monkeypatch):
    for number in range(2):
        raw.webdataset(tmp_path / f"{number}.tar", [number])
    prepare_unit = UnitPreparer.prepare

    def elsewhere(self, unit, target):
        (tmp_path / "1.tar").rename(tmp_path / "aside")
        try:
            prepare_unit(self, unit, target)
        finally:
            (tmp_path / "aside").rename(tmp_path / "1.tar")

    monkeypatch.setattr(UnitPreparer, "prepare", elsewhere)
    with pytest.raises(UserError, match=r"1\.tar: is gone, or cannot be reached from this machine"):
        prepare(tmp_path, tmp_path / "*.tar")
    monkeypatch.undo()
    assert len(keys_and_captions(prepare(tmp_path, tmp_path / "*.tar"))) == 2


@pytest.mark.slow  # every process imports TensorFlow and Beam
def test_several_processes_give_what_one_gives(tmp_path):
    for number in range(3):
        raw.webdataset(tmp_path / f"{number}.tar", range(3 * number, 3 * number + 3))
    one = prepare(tmp_path / "1", tmp_path / "*.tar")
    two = prepare(tmp_path / "2", tmp_path / "*.tar", workers=Workers(2))
    assert contents(one) == contents(two)


@pytest.mark.slow  # two worker processes, each of which imports TensorFlow and Beam
def test_command_prepares_all_kinds_of_files_with_two_workers(tmp_path):
    raw.webdataset(tmp_path / "a0.tar", range(3))
    raw.webdataset(tmp_path / "a1.tar.gz", range(3, 6), mode="w:gz")
    raw.tfrecord(tmp_path / "b.tfrecord", range(6, 9))
    raw.parquet(tmp_path / "c.parquet", range(9, 12))
    for number in range(12, 16):
        (tmp_path / f"{number}.webp").write_bytes(raw.picture(number, kind="WEBP"))
    lines = [f"{number:09d}\t{number}.webp\ta <b>bird</b> number {number}" for number in (12, 13)]
    table = [
        "key\tpath\tcaption",
        *lines,
        "000000014\t14.webp\tbird",
        "000000000\t15.webp\tnot new",
    ]
    (tmp_path / "d.tsv").write_text("\n".join(table))
    command = [sys.executable, "-m", "data_prep", "image_text", "custom", "--name=mixed"]
    flags = [
        f"--data_dir={tmp_path}/tfds",
        "--workers=2",
        "--order=source",
        "--resize=pad",
        "--size=64",
    ]
    sources = [
        f"{tmp_path}/{name}" for name in ("a0.tar", "*.gz", "b.tfrecord", "c.parquet", "d.tsv")
    ]
    done = subprocess.run([*command, *flags, "--sources", *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    bars = ("Preparing ", "Moving shards ")
    assert [x for x in re.split("[\r\n]+", done.stderr) if x and not x.startswith(bars)] == []
    directory = done.stdout.splitlines()[0]
    assert "image_text/mixed" in directory
    kinds = ["dog"] * 6 + ["cat"] * 3 + ["horse"] * 3 + ["bird"] * 2
    expected = [(f"{n:09d}", f"a {kind} number {n}") for n, kind in enumerate(kinds)]
    assert keys_and_captions(directory) == expected
    assert report(directory)["dropped"] == {"caption under two words": 1, "duplicate key": 1}
    for example in examples(directory):
        assert Image.open(io.BytesIO(example["image"])).size == (64, 64)
    again = subprocess.run(
        [*command, *flags, "--sources", *sources], capture_output=True, text=True
    )
    assert again.returncode == 0 and again.stdout == done.stdout
