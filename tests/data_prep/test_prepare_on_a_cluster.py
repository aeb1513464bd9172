"""Preparation on a Dask cluster gives the bytes of one machine, also when workers are lost."""

import pathlib
import subprocess
import sys
import time

import pytest
import raw_corpora as raw
from etils import epath
from prepared_corpora import GALLERY

from benchmarks.dask_cluster import DaskCluster, dask_cluster
from cocu_jax.errors import UserError
from data_prep.image_text import cluster

FILES, PAIRS = 24, 120


@pytest.mark.slow  # starts a scheduler, four workers and a client, each of which imports TensorFlow
@pytest.mark.parametrize("order", ["shuffled", "source"])
def test_run_with_a_killed_worker_gives_the_bytes_of_one_process(tmp_path, order):
    (tmp_path / "raw").mkdir()
    for number in range(FILES):  # every file repeats a key of the one before
        first = number * (PAIRS - 1)
        raw.webdataset(tmp_path / f"raw/{number:02d}.tar", range(first, first + PAIRS))
    GALLERY.save(str(tmp_path / "gallery.json"))
    arguments = ["custom", f"--sources={tmp_path}/raw/*.tar", f"--order={order}"]
    arguments += [f"--gallery={tmp_path}/gallery.json"]
    here = [*arguments, f"--data_dir={tmp_path}/one", "--workers=1"]
    command = [sys.executable, "-m", "data_prep", "image_text"]
    subprocess.run([*command, *here], check=True, capture_output=True)
    with dask_cluster(tmp_path, workers=4) as started:
        started.wait_for_workers()
        client = started.prepare(*arguments, f"--data_dir={tmp_path}/many")
        scratch = tmp_path / "many/image_text/custom.unfinished"
        while len(list(scratch.glob("unit-*.json"))) < FILES // 4:
            assert client.poll() is None, client.communicate()
            time.sleep(0.02)
        started.workers[0].kill()
        left = FILES - len(list(scratch.glob("unit-*.json")))
        _, messages = client.communicate(timeout=600)
        assert client.returncode == 0, messages[-2000:]
        assert [worker.poll() for worker in started.workers] == [-9, None, None, None]
    assert left > 4
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert not scratch.exists()


def test_address_without_a_scheduler_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_WAIT_SECONDS", 0.5)
    with pytest.raises(
        UserError, match="no Dask scheduler answers there .* dask scheduler"
    ) as told:
        cluster.work_on_cluster(
            lambda: print, [(0,)], epath.Path(tmp_path) / "stop", "tcp://127.0.0.1:9"
        )
    assert "\n" not in str(told.value)


@pytest.mark.slow  # starts a scheduler and a worker
def test_workers_without_the_package_are_told_in_one_line(tmp_path):
    for folder in ("package", "processes"):
        (tmp_path / folder).mkdir()
    started = DaskCluster(tmp_path / "package", tmp_path / "processes", 1)
    try:
        started.wait_for_workers()
        with pytest.raises(UserError, match=r"No module named 'data_prep'.*cocu-jax\[cluster\] on"):
            stop_file = epath.Path(tmp_path / "stop")
            cluster.work_on_cluster(GALLERY.load, [(0,)], stop_file, started.address)
    finally:
        started.close()


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
