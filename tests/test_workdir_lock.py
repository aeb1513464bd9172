"""One run at a time in a work directory, whatever became of the one before."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from cocu_jax.errors import UserError
from cocu_jax.workdir_lock import LOCK_FILE, WorkdirLock

ROOT = pathlib.Path(__file__).parents[1]
ELSEWHERE = {
    "token": "other",
    "host": "worker-7",
    "machine": "worker-7 some boot",
    "process": 4711,
    "born": "1",
    "started": "2026-01-02 03:04:05 UTC",
}


def write_lock(directory, **fields):
    (directory / LOCK_FILE).write_text(json.dumps(ELSEWHERE | {"renewed": time.time()} | fields))


def test_second_run_is_refused_and_the_first_one_named(tmp_path):
    with WorkdirLock(str(tmp_path)):
        holder = json.loads((tmp_path / LOCK_FILE).read_text())
        named = f"host {holder['host']}, process {os.getpid()}, started {holder['started']}"
        with pytest.raises(UserError, match=re.escape(named)), WorkdirLock(str(tmp_path)):
            pass
    assert not (tmp_path / LOCK_FILE).exists()
    with WorkdirLock(str(tmp_path)):
        pass


def test_run_that_was_killed_does_not_block(tmp_path):
    program = (
        "import sys, time; from cocu_jax.workdir_lock import WorkdirLock\n"
        "with WorkdirLock(sys.argv[1]): print('locked', flush=True); time.sleep(100)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"process {first.pid}"), WorkdirLock(str(tmp_path)):
            pass
        first.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK_FILE).exists()
    with WorkdirLock(str(tmp_path)):
        pass


def test_another_process_that_got_the_number_of_a_dead_one_does_not_block(tmp_path):
    with WorkdirLock(str(tmp_path)):
        mine = json.loads((tmp_path / LOCK_FILE).read_text())
    write_lock(tmp_path, machine=mine["machine"], process=os.getpid(), born="1")
    with WorkdirLock(str(tmp_path)):
        pass


def test_run_on_another_machine_counts_as_long_as_it_renews_its_file(tmp_path):
    write_lock(tmp_path)
    timer = threading.Timer(0.2, write_lock, [tmp_path])
    timer.start()
    with pytest.raises(UserError, match=r"host worker-7, process 4711, started 2026-01-02 03:04"):
        WorkdirLock(str(tmp_path), watched_for=5).__enter__()
    timer.join()
    with WorkdirLock(str(tmp_path), watched_for=0.3):  # nobody renews it now
        assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] != "other"


@pytest.mark.parametrize("content", ["", "{", "\xff"])
def test_file_that_makes_no_sense_does_not_block(tmp_path, content):
    (tmp_path / LOCK_FILE).write_bytes(content.encode("latin-1"))
    with WorkdirLock(str(tmp_path)):
        pass


def test_run_that_was_taken_for_dead_notices_and_leaves_the_other_one_its_file(tmp_path):
    with WorkdirLock(str(tmp_path), renewed_every=0.05) as lock:
        lock.check()
        write_lock(tmp_path)
        deadline = time.monotonic() + 10
        with pytest.raises(UserError, match="host worker-7"):
            while time.monotonic() < deadline:
                lock.check()
                time.sleep(0.02)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "other"


def test_bucket(bucket):
    run = bucket.folder / "run"
    with WorkdirLock("gs://bucket/run"):
        assert (run / LOCK_FILE).exists()
        with pytest.raises(UserError, match="gs://bucket/run: another run is at work"):
            WorkdirLock("gs://bucket/run").__enter__()
    assert not (run / LOCK_FILE).exists()
    write_lock(run)
    with WorkdirLock("gs://bucket/run", watched_for=0.2):
        assert json.loads((run / LOCK_FILE).read_text())["token"] != "other"
