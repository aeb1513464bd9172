"""Atomic writes of files that may be read at the same time; names and locations of files."""

import errno
import hashlib
import os
import urllib.parse
import uuid

from etils import epath

from cocu_jax.errors import UserError

# Disk full, quota exceeded, file too large, read-only file system.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_BUCKETS = ("gs", "s3", "az", "hf")  # schemes that `epath` opens
_LONGEST_NAME = 200  # bytes; most file systems allow 255, and extensions are added to the name


def write_file(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file atomically, locally or in a bucket; text is encoded as UTF-8.

    A local file is written under a unique temporary name in the same directory, synced and renamed.
    Readers see either the old or the new content, and concurrent writers do not interfere. Object
    stores make an object visible only when it is complete.

    Raises:
        UserError: the disk is full, or the path is not writable.
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
    """The error for a failed write, with path, reason and remedy."""
    full = error.errno in _NO_SPACE and error.errno != errno.EROFS
    remedy = "free some space" if full else "make it writable or choose another directory"
    return UserError(
        f"{path}: cannot write ({error.strerror or error}); {remedy}, "
        "then run the same command to continue"
    )


def full_disk(path: epath.PathLike, error: BaseException) -> UserError | None:
    """The `cannot_write` error if a full or read-only disk caused a library's error; else None."""
    cause = error
    while cause is not None and not isinstance(error, UserError):
        for number in _NO_SPACE:
            reason = os.strerror(number)
            if getattr(cause, "errno", None) == number or reason in str(cause):
                return cannot_write(path, OSError(number, reason))
        cause = cause.__cause__ or cause.__context__
    return None


def temporary_name(path: str) -> str:
    """A unique name in the directory of `path` that ends in `.tmp`."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name[:100]}.{uuid.uuid4().hex}.tmp")


def remove_temporaries(directory: epath.Path) -> None:
    """Removes temporary files of killed writers; call it while no process writes there."""
    for file in directory.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def expand_path(path: epath.PathLike) -> str:
    """Expands `~` in a path, which shells do not expand after `--flag=`.

    Args:
        path: a local path, or a path in a bucket.

    Raises:
        UserError: it is an address that cannot be opened, such as a web address.
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
    """A file name for any key: one path component, not hidden, and unique to the key.

    Letters, digits and `_-.~` are kept; a leading dot and all other bytes are percent-encoded.
    Names that would be too long are truncated and end in a hash of the key.
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
