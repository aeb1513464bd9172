"""Folders of images with their captions in files beside them."""

import os
from collections.abc import Iterator

from etils import epath

from data_prep.image_text.formats import IMAGE_ENDINGS, TEXT_ENDINGS, Reading

_HIDDEN = "hidden file (its name begins with a dot)"
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
    for directory, names in _walk(folder):
        groups: dict[str, dict[str, str]] = {}
        for name in names:
            stem, _, ending = name.rpartition(".")
            path = os.fspath(directory / name)
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


def _walk(folder: epath.Path) -> Iterator[tuple[epath.Path, list[str]]]:
    """Every folder below, and the sorted names of its files."""
    files, folders = [], []
    for path in sorted(folder.iterdir()):
        known = path.suffix.lower().removeprefix(".") in (*IMAGE_ENDINGS, *TEXT_ENDINGS, "json")
        (files if known or not path.is_dir() else folders).append(path)
    yield folder, [path.name for path in files]
    for path in folders:
        yield from _walk(path)
