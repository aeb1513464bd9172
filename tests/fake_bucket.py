"""A bucket at gs://bucket for everything that goes through `epath`, kept in a local folder."""

import io
import os
import pathlib
import shutil
import uuid

from etils.epath import backend, gpath


class FakeBucket(backend._OsPathBackend):
    """An object store as `epath` sees it: objects appear whole, at their close, or not at all.

    Attributes:
        folder: what is in the bucket.
        written: names of all objects ever written, in order.
        opened: names of all objects ever opened for reading.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.written: list[str] = []
        self.opened: list[str] = []

    def _local(self, path) -> str:
        path = os.fspath(path)
        assert path.startswith("gs://bucket"), f"{path} is not in the bucket"
        return str(self.folder) + path.removeprefix("gs://bucket")

    def _remote(self, path) -> str:
        return "gs://bucket" + str(path).removeprefix(str(self.folder))

    def open(self, path, mode):
        assert "a" not in mode and "+" not in mode, "objects cannot be changed"
        name = os.path.relpath(self._local(path), self.folder)
        if "w" not in mode:
            self.opened.append(name)
            return super().open(self._local(path), mode)
        binary = _Upload(self, name)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding="utf-8")

    def exists(self, path):
        return super().exists(self._local(path))

    def isdir(self, path):
        return super().isdir(self._local(path))

    def listdir(self, path):
        return super().listdir(self._local(path))

    def glob(self, path):
        return [self._remote(found) for found in super().glob(self._local(path))]

    def walk(self, top, **options):
        for folder, folders, files in super().walk(self._local(top), **options):
            yield self._remote(folder), folders, files

    def makedirs(self, path, **options):
        super().makedirs(self._local(path), **options)

    def mkdir(self, path, **options):
        super().makedirs(self._local(path), **options)  # there are no folders, only names

    def rmtree(self, path):
        super().rmtree(self._local(path))

    def remove(self, path):
        super().remove(self._local(path))

    def rename(self, path, dst):
        raise NotImplementedError("an object store copies where others rename")

    replace = rename

    def copy(self, path, dst, overwrite):
        source, target = (
            self._local(p) if str(p).startswith("gs://") else os.fspath(p) for p in (path, dst)
        )
        assert overwrite or not os.path.exists(target)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(source, target)

    def stat(self, path):
        return super().stat(self._local(path))


class _Upload(io.BytesIO):
    """An object that appears when it is closed."""

    def __init__(self, bucket: FakeBucket, name: str):
        super().__init__()
        self._bucket, self._name = bucket, name

    def __exit__(self, kind, *_):
        if kind is not None:
            super().close()  # an upload that fails leaves nothing
        self.close()

    def close(self):
        if not self.closed:
            target = self._bucket.folder / self._name
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = self._bucket.folder.with_name(f".upload-{uuid.uuid4().hex}")
            aside.write_bytes(self.getvalue())  # other processes may look at the bucket meanwhile
            aside.replace(target)
            self._bucket.written.append(self._name)
        super().close()


def install(monkeypatch, folder) -> FakeBucket:
    """Puts the bucket where `epath` looks for real ones."""
    bucket = FakeBucket(folder)
    bucket.folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(backend, "tf_backend", bucket)
    monkeypatch.setattr(backend, "fsspec_backend", bucket)
    # that of two paths' backends which copies from one to the other
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", (*gpath._GCS_BACKENDS, bucket))
    return bucket
