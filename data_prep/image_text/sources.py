"""From what the user names (files, patterns, folders) to units of work."""

import re
from collections.abc import Iterator

from braceexpand import UnbalancedBracesError, braceexpand
from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.lists import LIST_ENDINGS, write_folder_rows, write_list_rows
from data_prep.image_text.readers import Unit
from data_prep.image_text.yfcc import write_captions

_ENDINGS = {
    "tar": (".tar", ".tar.gz", ".tgz"),
    "tfrecord": (".tfrecord", ".tfrecords", ".tfrec"),
    "parquet": (".parquet",),
    "zip": (".zip",),
}
_SHARDED_TFRECORD = re.compile(r"\.tfrecord-\d+-of-\d+$")


def find_units(
    sources: list[str], scratch: epath.Path, yfcc: tuple[str, str] | None = None
) -> tuple[Unit, ...]:
    """All units of a corpus, in the order of the sources.

    Args:
        sources: files, patterns with `{000..331}` or `*`, folders. A folder stands for its tars;
            if it has none, for its TFRecords, its Parquet files, its zips, or its images with
            captions beside them.
        scratch: where lists are cut into units, and the captions of YFCC are kept.
        yfcc: `yfcc100m_dataset` and the optional subset file ("" for none); needed for zips.

    Raises:
        UserError: a source has nothing to read, or nobody knows how.
    """
    units = []
    for source in sources:
        for path in _expand(source):
            units += _units_of(path, scratch, len(units))
    seen = {unit.path for unit in units}
    if len(seen) < len(units):
        twice = next(unit.path for unit in units if [u.path for u in units].count(unit.path) > 1)
        raise UserError(f"{twice}: named twice among the sources; name it once")
    if any(unit.kind == "zip" for unit in units):
        if yfcc is None:
            raise UserError("zips have no captions: give YFCC's table with --yfcc yfcc100m_dataset")
        captions = str(write_captions(*yfcc, scratch / "captions.sqlite"))
        units = [Unit(u.kind, u.path, captions if u.kind == "zip" else "") for u in units]
    return tuple(units)


def _expand(source: str) -> Iterator[epath.Path]:
    """Files and folders that a source stands for."""
    try:
        names = list(braceexpand(source))
    except UnbalancedBracesError:
        raise UserError(f"{source}: braces do not match; write e.g. {{00000..00331}}") from None
    for name in names:
        path = epath.Path(name).expanduser()
        if path.exists():
            yield path
            continue
        marked = [any(mark in part for mark in "*?[") for part in path.parts]
        if True not in marked:
            raise UserError(f"{name}: no such file or folder; check the source")
        folder, pattern = path.parts[: marked.index(True)], path.parts[marked.index(True) :]
        found = sorted(epath.Path(*folder).glob("/".join(pattern)))
        if not found:
            raise UserError(f"{name}: no file matches; check the pattern (quote it in the shell)")
        yield from found


def _units_of(path: epath.Path, scratch: epath.Path, start: int) -> list[Unit]:
    if path.is_dir():
        names = sorted(path.iterdir())
        for kind in _ENDINGS:
            if files := [name for name in names if _kind(name) == kind]:
                return [Unit(kind, str(file)) for file in files]
        return [Unit("rows", str(rows)) for rows in write_folder_rows(path, scratch, start)]
    if kind := _kind(path):
        return [Unit(kind, str(path))]
    if path.name.lower().endswith(LIST_ENDINGS):
        return [Unit("rows", str(rows)) for rows in write_list_rows(path, scratch, start)]
    known = ", ".join(
        ending for endings in (*_ENDINGS.values(), LIST_ENDINGS) for ending in endings
    )
    raise UserError(f"{path}: unknown kind of file; known: {known}")


def _kind(path: epath.Path) -> str | None:
    name = path.name.lower()
    if _SHARDED_TFRECORD.search(name):
        return "tfrecord"
    return next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)
