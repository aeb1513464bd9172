"""Whenever the last phase of a preparation is killed, the same command gives the same bytes."""

import contextlib
import itertools
import os
import pathlib
import random
import shutil
import signal
import sys

import pytest
import raw_corpora as raw
from prepared_corpora import keys_and_captions, prepare, report, start_and_kill

from cocu_jax.stopping import Stopped
from data_prep.image_text import assembly
from data_prep.image_text.units import UnitPreparer


class Killed(BaseException):
    """Stands for the end of the process: whatever is done to files after it fails, too."""


class FileOperations:
    """Counts what this process does to files and folders, and may end it before one of them.

    Python tells audit hooks before it opens, renames or removes anything; a hook that raises
    prevents that. Hooks cannot be taken away, so this one is switched off.
    """

    _CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def __init__(self) -> None:
        self.watching = False
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def watched(self, last: float = float("inf")):
        self.done, self.last, self.watching = [], last, True
        try:
            yield
        finally:
            self.watching = False

    def _hear(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if not self.watching or not (writes or event in self._CHANGES):
            return
        if len(self.done) >= self.last:
            raise Killed
        self.done.append((event, arguments))


@pytest.fixture(scope="module")
def operations():
    return FileOperations()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Raw files, and a folder where all of them are prepared and nothing is assembled."""
    folder = tmp_path_factory.mktemp("raw")
    raw.webdataset(folder / "0.tar", range(3))
    raw.webdataset(folder / "1.tar", range(1, 5))  # two of four are repeated
    raw.webdataset(folder / "2.tar", range(2))  # all are
    raw.webdataset(folder / "3.tar", range(5, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.image_text.prepare.assemble", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, folder / "*.tar")
    for left in (folder / "tfds").rglob("moving"):
        left.unlink()
    return folder


@pytest.fixture(scope="module")
def expected(prepared, tmp_path_factory):
    copy = tmp_path_factory.mktemp("at once")
    return contents(_go_on(prepared, _copy(prepared, copy)))


@pytest.fixture(autouse=True)
def nothing_is_prepared_again(prepared, expected, monkeypatch):
    monkeypatch.setattr(UnitPreparer, "prepare", _interrupted)


def test_what_is_assembled(prepared, tmp_path):
    directory = _go_on(prepared, _copy(prepared, tmp_path))
    assert [key for key, _ in keys_and_captions(directory)] == [f"{n:09d}" for n in range(8)]
    assert report(directory)["kept"] == 8
    assert report(directory)["dropped"] == {"duplicate key": 4}
    beside = sorted(path.name for path in pathlib.Path(directory).parent.parent.iterdir())
    assert beside == [".config", "custom"]


def test_a_kill_before_any_file_operation_loses_nothing(prepared, expected, operations, tmp_path):
    for step in itertools.count():
        folder = _copy(prepared, tmp_path / str(step))
        try:
            with operations.watched(step):
                _go_on(prepared, folder)
            break  # there is no such operation any more
        except Killed:
            pass
        assert contents(_go_on(prepared, folder)) == expected
        assert not list(folder.rglob("*unfinished*"))
        shutil.rmtree(folder)
    assert step > 30


def test_no_shard_is_renamed_twice_and_no_folder_at_all(prepared, operations, tmp_path):
    """A rename in a bucket is a copy of all that is below."""
    _copy(prepared, tmp_path)
    with operations.watched():
        directory = _go_on(prepared, tmp_path)
    renames = [arguments[:2] for event, arguments in operations.done if event == "os.rename"]
    assert len(renames) > 3
    assert not any(pathlib.Path(new).is_dir() for _, new in renames)
    shards = [str(path) for path in pathlib.Path(directory).glob("*.tfrecord-*")]
    moved = [str(new) for old, new in renames if "tfrecord" in str(old)]
    assert sorted(moved) == sorted(shards)


def test_ctrl_c_between_shards(prepared, expected, tmp_path, monkeypatch):
    folder, move, moved = _copy(prepared, tmp_path), assembly._move, []

    def then_ctrl_c(*arguments):
        moved.append(move(*arguments))
        os.kill(os.getpid(), signal.SIGINT)
        return moved[-1]

    monkeypatch.setattr(assembly, "_move", then_ctrl_c)
    with pytest.raises(Stopped, match="stopped after moving 1 of 3 shards; run the same command"):
        _go_on(prepared, folder)
    monkeypatch.setattr(assembly, "_move", move)
    assert contents(_go_on(prepared, folder)) == expected


@pytest.mark.slow  # starts the command twenty times
def test_processes_killed_at_random_moments(prepared, expected, tmp_path):
    draw, kills = random.Random(0), 0
    for number in range(20):
        folder = _copy(prepared, tmp_path / str(number))
        command = [sys.executable, "-c", _SCRIPT, str(folder), str(prepared / "*.tar")]
        kills += start_and_kill(command, draw.uniform(0, 0.15))
        assert contents(_go_on(prepared, folder)) == expected
    assert kills > 6


_SCRIPT = """
import sys
sys.path.insert(0, "tests/data_prep")
import pathlib
import apache_beam, prepared_corpora
print("go", flush=True)
prepared_corpora.prepare(pathlib.Path(sys.argv[1]), sys.argv[2])
"""


def _copy(prepared: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    shutil.copytree(prepared / "tfds", folder / "tfds")
    return folder


def _go_on(prepared: pathlib.Path, folder: pathlib.Path) -> str:
    return prepare(folder, prepared / "*.tar")


def contents(directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


def _interrupted(*_):
    raise KeyboardInterrupt
