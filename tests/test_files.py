"""Atomic files and safe names."""

import errno
import threading

import pytest

from cocu_jax.errors import UserError
from cocu_jax.files import expand_path, full_disk, safe_name, write_file


def test_writers_of_one_file_do_not_meet(tmp_path):
    contents = [bytes([number]) * 200_000 for number in range(8)]
    path = tmp_path / "new" / "file"

    threads = [threading.Thread(target=write_file, args=(path, c)) for c in contents * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert path.read_bytes() in contents
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_place_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match=r"file/below: cannot write \(.*\); .*") as caught:
        write_file(tmp_path / "file" / "below", "text")

    assert "\n" not in str(caught.value)


KEYS = ["", ".", "..", "../escaped", "a/b", "a%2Fb", "a b", "é", "\0", ".hidden", "\udc80"]
KEYS += ["x" * 3_000, "x" * 3_000 + "y", "文" * 300, "plain-key_01.jpg"]


def test_safe_names_are_single_components_that_can_be_created(tmp_path):
    names = {safe_name(key) for key in KEYS}

    assert len(names) == len(KEYS)
    for name in names:
        write_file(tmp_path / (name + ".long_ending"), "")
        assert not name.startswith(".")
    assert len(list(tmp_path.iterdir())) == len(KEYS)
    assert safe_name("plain-key_01.jpg") == "plain-key_01.jpg"


def test_full_disk_is_one_line_whatever_a_library_makes_of_it():
    """The messages are those of TensorStore, Orbax and TensorFlow on a full tmpfs."""
    inner = ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device [1]")
    outer = RuntimeError("saving failed\nmore\nlines")
    outer.__cause__ = inner
    for error in (inner, outer, OSError(errno.ENOSPC, "No space left on device")):
        line = str(full_disk("runs/cocu", error))
        assert line.startswith("runs/cocu: cannot write (No space left on device); free some space")
    assert full_disk("runs/cocu", OSError(errno.EIO, "Input/output error")) is None
    assert full_disk("runs/cocu", ValueError("shapes differ")) is None


def test_places_are_local_or_in_a_bucket(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_path("~/photos") == "/home/me/photos"
    assert expand_path("a~b/c") == "a~b/c" and expand_path("gs://bucket/a") == "gs://bucket/a"
    for address in ("https://a.org/b", "http://a.org", "file:///b", "s4://a"):
        with pytest.raises(UserError, match="cannot be opened; download it"):
            expand_path(address)
