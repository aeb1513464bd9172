"""Writes folders and files such that only complete ones appear under their name."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath
from safetensors import SafetensorError

from cocu_jax.errors import UserError
from cocu_jax.models.weights.source import CONFIG


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[pathlib.Path]:
    """Context manager: a folder to write into, which is moved to `path` on success.

    An earlier model at `path` is replaced. In a bucket, where folders cannot be renamed, the files
    are copied, `config.json` last.

    Raises:
        UserError: `path` exists and is not a model, or is not writable.
    """
    place = epath.Path(path)
    if place.exists() and not (place / CONFIG).exists() and not _is_empty(place):
        raise UserError(f"{place}: already exists and is not a model; choose another place")
    with _beside(path) as staging:
        staging.mkdir()
        yield staging
        if "://" in str(path):
            _upload(staging, place)
        else:
            _replace(staging, pathlib.Path(place))


@contextlib.contextmanager
def new_file(path: str) -> Iterator[pathlib.Path]:
    """Context manager: a file to write, which is moved to `path` on success.

    Raises:
        UserError: `path` is a folder, or is not writable.
    """
    place = epath.Path(path)
    if place.is_dir():
        raise UserError(f"{place}: is a folder; give the name of a file in it")
    with _beside(path) as staging:
        yield staging
        if "://" in str(path):
            epath.Path(staging).copy(place, overwrite=True)
        else:
            staging.replace(place)


@contextlib.contextmanager
def _beside(path: str) -> Iterator[pathlib.Path]:
    """A temporary local path of the same name; on the target's disk, so that it can be moved."""
    place = epath.Path(path)
    remote = "://" in str(path)
    try:
        if not remote:
            place.parent.mkdir(parents=True, exist_ok=True)
        private = tempfile.mkdtemp(
            prefix=f".{place.name}.partial-", dir=None if remote else place.parent
        )
    except OSError as error:
        raise UserError(f"{place}: cannot write there ({error.strerror})") from None
    try:
        yield pathlib.Path(private) / place.name
    except (OSError, SafetensorError) as error:
        raise UserError(f"{place}: writing failed ({error}); no files were left") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _is_empty(place: epath.Path) -> bool:
    return place.is_dir() and not any(place.iterdir())


def _replace(staging: pathlib.Path, place: pathlib.Path) -> None:
    if not place.exists():
        staging.rename(place)
        return
    before = staging.with_name(f"{staging.name}-before")  # removed with the staging
    place.rename(before)
    try:
        staging.rename(place)
    except OSError:
        before.rename(place)
        raise


def _upload(staging: pathlib.Path, place: epath.Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for file in sorted(staging.iterdir(), key=lambda file: file.name == CONFIG):
        epath.Path(file).copy(place / file.name, overwrite=True)
