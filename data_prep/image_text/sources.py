"""From what the user names (files, patterns, folders) to units of work."""

import glob
import os
import re
from collections.abc import Iterator, Sequence

from braceexpand import UnbalancedBracesError, braceexpand
from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.folders import folder_rows, walk
from data_prep.image_text.formats import Reading
from data_prep.image_text.list_records import LIST_ENDINGS
from data_prep.image_text.lists import list_rows
from data_prep.image_text.readers import Unit
from data_prep.image_text.rows import write_rows
from data_prep.image_text.tables import check_table, holds_images
from data_prep.image_text.yfcc import write_captions
from data_prep.image_text.zips import check_zip

_ENDINGS = {
    "tar": (".tar", ".tar.gz", ".tgz"),
    "tfrecord": (".tfrecord", ".tfrecords", ".tfrec"),
    "parquet": (".parquet",),
    "zip": (".zip",),
}
_SHARDED_TFRECORD = re.compile(r"\.tfrecord-\d+-of-\d+$")


def find_units(
    sources: Sequence[str],
    scratch: epath.Path,
    yfcc: tuple[str, str] | None,
    reading: Reading,
) -> tuple[Unit, ...]:
    """All units of a corpus, in the order of the sources.

    Args:
        sources: files, patterns with `{000..331}`, `*` or `**`, folders. A folder stands for its
            tars; if it has none, for its TFRecords, its Parquet files with images, its zips, or its
            images with captions beside them.
        scratch: where lists are cut into units, and the captions of YFCC are kept.
        yfcc: `yfcc100m_dataset` and the optional subset file ("" for none), for
            zips of photos without captions.
        reading: names of columns, and where the paths of lists start.

    Raises:
        UserError: a source has nothing to read, or nobody knows how.
    """
    units: list[Unit] = []
    for source in sources:
        for path in _expand(source):
            units += _units_of(path, scratch, len(units), reading)
    if not units:
        raise UserError(f"{sources[0]}: there is nothing in it; give sources with images")
    seen = {unit.path for unit in units}
    if len(seen) < len(units):
        twice = next(unit.path for unit in units if [u.path for u in units].count(unit.path) > 1)
        raise UserError(f"{twice}: named twice among the sources; name it once")
    if tables := [unit.path for unit in units if unit.kind == "parquet"]:
        check_table(tables[0], reading)
    zips = [unit.path for unit in units if unit.kind == "zip"]
    if zips and not yfcc:
        check_zip(zips[0], reading)
    elif zips:
        captions = str(write_captions(*yfcc, scratch / "captions.sqlite"))
        units = [Unit(u.kind, u.path, captions if u.kind == "zip" else "") for u in units]
    return tuple(units)


def _expand(source: str) -> Iterator[epath.Path]:
    """Files and folders that a source stands for."""
    if not source.strip():
        raise UserError("--sources: one of the names is empty; name files, patterns or folders")
    try:
        literal = epath.Path(source).expanduser().exists()  # braces may be part of a name
        names = [source] if literal else list(braceexpand(source))
    except UnbalancedBracesError:
        raise UserError(f"{source}: braces do not match; write e.g. {{00000..00331}}") from None
    for name in names:
        path = epath.Path(name).expanduser()
        if "://" not in name:  # workers may run in another folder
            path = epath.Path(os.path.abspath(path))
        if path.exists():
            yield path
            continue
        marked = [any(mark in part for mark in "*?[") for part in path.parts]
        if True not in marked:
            raise UserError(f"{name}: no such file or folder; check the source")
        found = _matches(path, marked.index(True))
        if not found:
            raise UserError(f"{name}: no file matches; check the pattern (quote it in the shell)")
        yield from found


def _matches(path: epath.Path, first: int) -> list[epath.Path]:
    """What a pattern matches, sorted; `first` is its first part with a mark."""
    if "**" not in path.parts:
        folder, pattern = path.parts[:first], path.parts[first:]
        return sorted(epath.Path(*folder).glob("/".join(pattern)))
    if "://" in str(path):
        raise UserError(f"{path}: ** is only for local files; name the folders or use *")
    return sorted(map(epath.Path, glob.glob(str(path), recursive=True)))


def _units_of(path: epath.Path, scratch: epath.Path, start: int, reading: Reading) -> list[Unit]:
    if path.is_dir():
        return _units_of_folder(path, scratch, start, reading)
    if kind := _kind(path):
        return [Unit(kind, str(path))]
    if path.name.lower().endswith(LIST_ENDINGS):
        files = write_rows(list_rows(path, reading), scratch, start)
        return [Unit("rows", str(file)) for file in files]
    known = ", ".join(
        ending for endings in (*_ENDINGS.values(), LIST_ENDINGS) for ending in endings
    )
    raise UserError(f"{path}: unknown kind of file; known: {known}")


def _units_of_folder(
    folder: epath.Path, scratch: epath.Path, start: int, reading: Reading
) -> list[Unit]:
    names = sorted(folder.iterdir())
    for kind in _ENDINGS:
        files = [name for name in names if _kind(name) == kind]
        # Without images they are what img2dataset writes beside its folders: metadata.
        if files and (kind != "parquet" or holds_images(str(files[0]), reading)):
            return [Unit(kind, str(file)) for file in files]
    images = 0

    def rows() -> Iterator[dict]:
        nonlocal images
        for row in folder_rows(folder, reading):
            images += row.get("path") is not None
            yield row

    units = [Unit("rows", str(file)) for file in write_rows(rows(), scratch, start)]
    if not images:
        below = (f for _, files in walk(folder, ()) for f in files if _kind(f))
        hint = ""
        if deeper := next(below, None):
            hint = f"; for {deeper} and the like, give '{folder}/**/*{deeper.suffix}'"
        raise UserError(
            f"{folder}: no tars, TFRecords, Parquet files with images, zips or images in here{hint}"
        )
    return units


def _kind(path: epath.Path) -> str | None:
    name = path.name.lower()
    if _SHARDED_TFRECORD.search(name):
        return "tfrecord"
    return next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)
