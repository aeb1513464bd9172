"""Allows one run at a time in a work directory, on local disks and in buckets.

The run keeps a small lock file in its directory and renews it every few seconds. A second run is
refused while the owner is alive: on the same machine the process table is checked; from another
machine the file is watched for a renewal. A file that is not renewed is taken over, and an owner
that had only been suspended notices this at its next renewal.
"""

import json
import os
import pathlib
import socket
import threading
import time
import uuid

from absl import logging
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.files import cannot_write, write_file

LOCK_FILE = "run.lock"

_RENEWED_EVERY = 10.0  # seconds
_WATCHED_FOR = 35.0
_LONG_DEAD = 3600.0  # older than any difference between clocks
_SETTLED_AFTER = {False: 0.05, True: 1.0}  # seconds until a concurrent write is visible


class WorkdirLock:
    """Context manager that gives this process exclusive write access to a work directory.

    Args:
        workdir: local or `gs://` directory; it is created.
        renewed_every: seconds between two renewals.
        watched_for: seconds without a renewal after which a file from another machine is dead.

    Raises:
        UserError: on entering, if another run uses the directory; the message has its host, process
            and start.
    """

    def __init__(
        self,
        workdir: str,
        renewed_every: float = _RENEWED_EVERY,
        watched_for: float = _WATCHED_FOR,
    ):
        self._workdir = workdir
        self._file = epath.Path(workdir) / LOCK_FILE
        self._every, self._watched_for = renewed_every, watched_for
        self._own = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "process": os.getpid(),
            "born": _born(os.getpid()),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        }
        self._left = threading.Event()
        self._usurper: dict | None = None
        self._thread = threading.Thread(target=self._renew, name="workdir lock", daemon=True)

    def __enter__(self) -> "WorkdirLock":
        holder = self._read()
        if holder and not self._is_dead(holder):
            raise self._refusal(holder)
        self._write()
        time.sleep(_SETTLED_AFTER["://" in self._workdir])
        holder = self._read()
        if holder and holder["token"] != self._own["token"]:
            raise self._refusal(holder)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        holder = self._read()
        if holder and holder["token"] == self._own["token"]:
            self._file.unlink(missing_ok=True)

    def check(self) -> None:
        """Call this before writing.

        Raises:
            UserError: another run has taken the directory over while this one was suspended.
        """
        if self._usurper:
            raise self._refusal(self._usurper)

    def _renew(self) -> None:
        while not self._left.wait(self._every):
            try:
                holder = self._read()
                if holder and holder["token"] != self._own["token"]:
                    self._usurper = holder
                    return
                self._write()
            except UserError as error:  # a full disk; the run reports it at its next write
                logging.warning("%s cannot be renewed (%s)", self._file, error)

    def _read(self) -> dict | None:
        try:
            return json.loads(self._file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise cannot_write(self._file, error) from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None  # a damaged file counts as missing

    def _write(self) -> None:
        write_file(self._file, json.dumps(self._own | {"renewed": time.time()}))

    def _is_dead(self, holder: dict) -> bool:
        if holder["machine"] == self._own["machine"]:
            return _born(holder["process"]) != holder["born"]
        if time.time() - holder["renewed"] > _LONG_DEAD:
            return True
        logging.warning(
            "%s: a run on host %s was here; watching for %.0f s whether it still is",
            self._workdir,
            holder["host"],
            self._watched_for,
        )
        deadline = time.monotonic() + self._watched_for
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._watched_for / 10))
            if self._read() != holder:
                return self._read() is None
        return True

    def _refusal(self, holder: dict) -> UserError:
        return UserError(
            f"{self._workdir}: another run is at work there (host {holder['host']}, process "
            f"{holder['process']}, started {holder['started']}); stop it, or use another --workdir"
        )


def _machine() -> str:
    """Names a process table: host, boot, and, in a container, its own numbers of processes."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    space = pathlib.Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    parts += [boot.read_text().strip()] if boot.exists() else []
    parts += [os.readlink(space)] if space.is_symlink() else []
    return " ".join(parts)


def _born(process: int) -> str | None:
    """When a process began, in the kernel's count; None if it does not live (any more)."""
    try:
        # The name, in parentheses, may hold anything; state and start are fields 3 and 22.
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if pathlib.Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
