"""A Dask cluster of several processes on this machine that have only the installed package."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

from distributed import Client

from benchmarks.installed_package import install_package

_START_SECONDS = 120


class DaskCluster:
    """A scheduler and its workers, each a process with a thread, in empty working directories.

    Attributes:
        address: of the scheduler.
        workers: the workers' processes.
    """

    def __init__(self, package: pathlib.Path, folder: pathlib.Path, workers: int) -> None:
        self._environment = {**os.environ, "PYTHONPATH": str(package)}
        self._folder = folder
        file = folder / "scheduler.json"
        self._scheduler = self._start(
            "scheduler", f"--scheduler-file={file}", "--port=0", "--no-dashboard"
        )
        end = time.monotonic() + _START_SECONDS
        while not file.exists() or not file.read_text():
            if time.monotonic() > end:
                raise TimeoutError("the scheduler does not start")
            time.sleep(0.1)
        self.address = json.loads(file.read_text())["address"]
        options = "--no-nanny", "--nthreads=1", "--no-dashboard", "--memory-limit=0"
        self.workers = [self._start("worker", self.address, *options) for _ in range(workers)]

    def _start(self, kind: str, *options: str) -> subprocess.Popen:
        folder = self._folder / f"{kind}-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        with open(folder.with_suffix(".log"), "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options],
                cwd=folder,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def wait_for_workers(self) -> None:
        """Returns when all workers have come to the scheduler."""
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(len(self.workers), timeout=_START_SECONDS)

    def prepare(self, *arguments: str) -> subprocess.Popen:
        """Starts `python -m data_prep image_text` as a client of the cluster."""
        folder = self._folder / f"client-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "data_prep",
                "image_text",
                *arguments,
                "--cluster",
                self.address,
            ],
            cwd=folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Ends all processes."""
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.wait()


@contextlib.contextmanager
def dask_cluster(folder: pathlib.Path, workers: int) -> Iterator[DaskCluster]:
    """A cluster whose package and working directories are below `folder`."""
    install_package(folder / "package")
    (folder / "processes").mkdir()
    cluster = DaskCluster(folder / "package", folder / "processes", workers)
    try:
        yield cluster
    finally:
        cluster.close()
