"""Files of a bucket as local ones: memory maps need a file on disk."""

import collections
import os
import tempfile
import threading

from etils import epath

from cocu_jax.files import cannot_write, safe_name, temporary_name

_CHUNK = 1 << 24


class Staging:
    """A folder of bounded size with copies of the bucket's files that were used last.

    Files of a bucket are taken to never change. What is mapped stays mapped when its copy is
    removed. The folder is this process's own and goes with it.
    """

    def __init__(self, parent: str, limit: int):
        """Args: where the folder is made ("": the system's place), and its bound in bytes.

        A single file may exceed the bound; then it is the only one.
        """
        self._parent, self._limit = parent or None, limit
        self._folder: tempfile.TemporaryDirectory | None = None
        self._sizes: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._lock = threading.Lock()

    def local(self, path: epath.PathLike) -> str:
        """`path` itself if it is local, else the name of a copy, made if it is not there.

        Raises:
            OSError: there is no such file in the bucket.
            UserError: no space for the copy.
        """
        source = os.fspath(path)
        if "://" not in source:
            return source
        with self._lock:
            if source in self._sizes:
                self._sizes.move_to_end(source)
                return self._name(source)
            try:
                self._make_room(epath.Path(source).stat().length)
                self._sizes[source] = self._copy(source)
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise
                raise cannot_write(f"copy of {source}", error) from None
            return self._name(source)

    def _make_room(self, size: int) -> None:
        while self._sizes and sum(self._sizes.values()) + size > self._limit:
            oldest, _ = self._sizes.popitem(last=False)
            os.remove(self._name(oldest))

    def _copy(self, source: str) -> int:
        """Copies the file in pieces; returns its size."""
        target = self._name(source)
        aside = temporary_name(target)
        with epath.Path(source).open("rb") as remote, open(aside, "wb") as copy:
            while chunk := remote.read(_CHUNK):
                copy.write(chunk)
        os.replace(aside, target)
        return os.path.getsize(target)

    def _name(self, source: str) -> str:
        if self._folder is None:
            if self._parent:
                os.makedirs(self._parent, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(dir=self._parent, prefix="curation-")
        return os.path.join(self._folder.name, safe_name(source))
