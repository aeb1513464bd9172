"""Atomic writes of files that others may read at the same time; names and places of files."""

import errno
import hashlib
import os
import urllib.parse
import uuid

from etils import epath

from cocu_jax.errors import UserError

# Disk full, quota exceeded, file too large, read-only file system.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_BUCKETS = ("gs", "s3", "az", "hf")  # what `epath` opens
_LONGEST_NAME = 200  # bytes; most file systems allow 255, and endings are added to it


def write_file(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file atomically, locally or in a bucket; text is encoded as UTF-8.

    A local file is written under a unique temporary name beside `path`, synced and renamed: readers
    see either the old content or the new, and concurrent writers do not disturb one another. Object
    stores make an object visible only when it is complete.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if "://" in str(path):
            path.write_bytes(content)
        else:
            _write_local(os.fspath(path), content)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: epath.PathLike, error: OSError) -> UserError:
    """The error for a failed write: the path, the reason, and the remedy."""
    full = error.errno in _NO_SPACE and error.errno != errno.EROFS
    remedy = "free some space" if full else "make it writable or choose another directory"
    return UserError(
        f"{path}: cannot write ({error.strerror or error}); {remedy}, "
        "then run the same command to continue"
    )


def full_disk(path: epath.PathLike, error: BaseException) -> UserError | None:
    """The `cannot_write` error if a full or read-only disk caused a library's error, else None."""
    cause = error
    while cause is not None and not isinstance(error, UserError):
        for number in _NO_SPACE:
            reason = os.strerror(number)
            if getattr(cause, "errno", None) == number or reason in str(cause):
                return cannot_write(path, OSError(number, reason))
        cause = cause.__cause__ or cause.__context__
    return None


def temporary_name(path: str) -> str:
    """A name beside `path` that no other writer uses; it ends in `.tmp`."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name[:100]}.{uuid.uuid4().hex}.tmp")


def remove_temporaries(directory: epath.Path) -> None:
    """Removes the temporary files of killed writers; no other process may write there now."""
    for left in directory.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def place(path: epath.PathLike) -> str:
    """A local path, or one in a bucket, with `~` spelled out: behind `--flag=` shells leave it.

    Raises:
        UserError: it is an address of a kind that cannot be opened, such as one of the web.
    """
    path = os.path.expanduser(os.fspath(path))
    scheme, separator, _ = path.partition("://")
    if separator and scheme not in _BUCKETS:
        raise UserError(
            f"{path}: {scheme}:// cannot be opened; download it, and give a local path or one in "
            "a bucket (gs://)"
        )
    return path


def safe_name(key: str) -> str:
    """A file name for any key: one path component, never hidden, different for different keys.

    Letters, digits and `_-.~` stay; every other byte is percent-encoded, as is a leading dot. Names
    that would be too long are cut and end in a hash of the whole key.
    """
    name = urllib.parse.quote(key, safe="", errors="surrogatepass")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if not name:
        return "%"
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]
        name = f"{name[: _LONGEST_NAME - 33]}-{digest}"
    return name


def _write_local(path: str, content: bytes) -> None:
    aside = temporary_name(path)
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        if os.path.exists(aside):
            os.remove(aside)
        raise
