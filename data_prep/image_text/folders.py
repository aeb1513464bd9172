"""Folders of images with their captions in files beside them."""

import os
from collections.abc import Iterator, Sequence

from etils import epath

from data_prep.image_text.formats import IMAGE_ENDINGS, TEXT_ENDINGS, Reading

_HIDDEN = "hidden file or folder (its name begins with a dot)"
_UNKNOWN = "no image or caption by its ending"
_ANOTHER = "another file of the same name"


def folder_rows(folder: epath.Path, reading: Reading) -> Iterator[dict]:
    """Rows for `rows.write_rows`, in an order that does not depend on the file system.

    An example is one image and the texts that have its name up to the last dot. img2dataset's
    tables beside its folders (`00000.parquet` beside `00000`) are passed over: they repeat what is
    in the folders.
    """
    texts = tuple(map(str.lower, reading.caption_column)) or TEXT_ENDINGS
    texts = tuple(dict.fromkeys((*texts, "json")))
    for directory, paths in walk(folder, (*IMAGE_ENDINGS, *texts)):
        groups: dict[str, dict[str, str]] = {}
        for file in paths:
            name, path = file.name, os.fspath(file)
            stem, _, ending = name.rpartition(".")
            if name.startswith("."):
                yield {"dropped": _HIDDEN, "place": path}
            elif stem and ending.lower() in (*IMAGE_ENDINGS, *texts):
                if groups.setdefault(stem, {}).setdefault(ending.lower(), path) != path:
                    yield {"dropped": _ANOTHER, "place": path}  # a.JPG beside a.jpg
            elif ending.lower() != "parquet" or not (directory / stem).is_dir():
                yield {"dropped": _UNKNOWN, "place": path}
        for stem, files in groups.items():
            key = (directory.relative_to(folder) / stem).as_posix()
            images = [files[ending] for ending in IMAGE_ENDINGS if ending in files]
            beside = {ending: files[ending] for ending in texts if ending in files}
            image = images[0] if images else None
            place = image or next(iter(beside.values()))
            yield {"key": key, "path": image, "beside": beside, "place": place}
            yield from ({"dropped": _ANOTHER, "place": other} for other in images[1:])


def walk(
    folder: epath.Path, endings: Sequence[str], above: frozenset[str] = frozenset()
) -> Iterator[tuple[epath.Path, list[epath.Path]]]:
    """Every folder below, and its files and hidden folders, sorted by name.

    A link to a folder that it is in leads nowhere: its files are there already.

    Args:
        folder: where to begin.
        endings: of names that are files for sure, which need not be asked.
        above: the folders above, without links.
    """
    place = os.path.realpath(folder)
    if place in above:
        return
    files, folders = [], []
    for path in sorted(folder.iterdir()):
        known = path.suffix.lower().removeprefix(".") in endings
        file = known or path.name.startswith(".") or not path.is_dir()
        (files if file else folders).append(path)
    yield folder, files
    for path in folders:
        yield from walk(path, endings, above | {place})
