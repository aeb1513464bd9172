"""Suppresses the messages of native libraries and child processes on the terminal."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Discards output to file descriptor 2; `sys.stderr` keeps its destination.

    There is no other way to turn off TensorFlow's first lines and the messages of Beam's workers.
    """
    python_stderr = sys.stderr
    try:
        uses_descriptor = python_stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):  # replaced, e.g. by a test; or closed
        uses_descriptor = False
    if uses_descriptor:
        python_stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        if uses_descriptor:
            sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, errors="backslashreplace")
        yield
    finally:
        if uses_descriptor:
            sys.stderr.close()
            sys.stderr = python_stderr
        os.dup2(kept, 2)
        os.close(kept)
