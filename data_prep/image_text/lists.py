"""Lists of paths and captions as rows: all captions of an image together."""

import array
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.formats import Dropped, Reading
from data_prep.image_text.list_records import Record, is_link, list_of_links, read_list
from data_prep.image_text.records import hash_key

_FOLDERS = 1_000  # that are looked into to give advice
_LOOKED_FOR = 100  # images of which one at least must be there


def list_rows(path: epath.Path, reading: Reading) -> Iterator[dict]:
    """Rows for `rows.write_rows`: one for every image, in the order of its first line.

    Memory is 50 bytes for every line of the list, wherever the captions of an image stand.

    Raises:
        UserError: the list names no image or no caption, or the first images are not there.
    """
    folder = epath.Path(reading.images).expanduser() if reading.images else path.parent
    if reading.images and not folder.is_dir():
        raise UserError(f"--images {reading.images}: no such folder; name where the paths start")
    search = _Search(path, folder)
    with tempfile.TemporaryFile() as spool:
        offsets, images = array.array("Q"), array.array("Q")
        for record in read_list(path, reading):
            named = isinstance(record, Record) and bool(record.path)
            if named and not search.found:
                search.look(record.path)
            offsets.append(spool.tell())
            images.append(hash_key(record.path if named else f"\0{record.place}"))
            spool.write(json.dumps(_row(record, folder)).encode() + b"\n")
        search.finish()
        yield from _together(spool, np.array(offsets), np.array(images))


class _Search:
    """Looks whether a list's paths lead anywhere, before hours are spent on a wrong folder."""

    def __init__(self, path: epath.Path, folder: epath.Path) -> None:
        self._list = path
        self._folder = folder
        self._missing: list[str] = []
        self.found = False

    def look(self, image: str) -> None:
        """Looks for one image; raises a UserError after many in vain."""
        self.found = (self._folder / image).exists()
        if not self.found:
            self._missing.append(image)
        if len(self._missing) == _LOOKED_FOR:
            self.finish()

    def finish(self) -> None:
        """Raises a UserError if no image was there."""
        if self._missing and not self.found:
            if is_link(self._missing[0]):
                raise list_of_links(self._list)
            raise UserError(
                f"{self._list}: no image is there, looked for {self._folder / self._missing[0]} "
                f"first; {self._advice()}"
            )

    def _advice(self) -> str:
        """Names the folder beside the list that has the image, if there is one."""
        image = self._missing[0]
        beside = sorted(self._list.parent.iterdir())[:_FOLDERS]
        for folder in beside:
            if folder.is_dir() and (folder / image).exists():
                return f"it is in {folder}: give --images {folder}"
        return "name the folder where the list's paths start with --images FOLDER"


def _row(record: Record | Dropped, folder: epath.Path) -> dict:
    if isinstance(record, Dropped):
        return {"dropped": record.reason, "place": record.place, "count": record.count}
    image = os.fspath(folder / record.path) if record.path else None
    return {
        "key": record.key,
        "path": image,
        "captions": record.captions,
        "faults": record.faults,
        "place": f"{record.place} ({image})" if image else record.place,
    }


def _together(spool: BinaryIO, offsets: np.ndarray, images: np.ndarray) -> Iterator[dict]:
    """The rows, those of one image joined where the first of them stands."""
    _, first, image = np.unique(images, return_index=True, return_inverse=True)
    first = first[image] if len(images) else image
    order = np.argsort(first, kind="stable")
    for _, places in itertools.groupby(order, first.__getitem__):
        whole, faulty = None, False
        for place in places:
            spool.seek(offsets[place])
            row = json.loads(spool.readline())
            for fault in row.pop("faults", ()):
                faulty = True
                yield {"dropped": fault, "place": row["place"]}
            if whole is None:
                whole = row
            else:
                whole["captions"] += row["captions"]
        if "dropped" in whole or whole["captions"] or not faulty:
            yield whole
