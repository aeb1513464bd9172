"""Joining the members of an archive to examples by their names."""

import posixpath
from collections.abc import Callable, Iterator

from data_prep.image_text.formats import (
    IMAGE_ENDINGS,
    LARGE_IMAGE,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    NO_CAPTION,
    NO_IMAGE,
    TEXT_ENDINGS,
    Dropped,
    RawExample,
    Reading,
)
from data_prep.image_text.texts import captions_in_parts

_APART = "members of a pair are not adjacent; repack the archive sorted by name"
_DOTTED = (
    "name with several dots; give --dotted_keys if keys have dots, "
    "or name the endings by --image_column and --caption_column"
)
_UNKNOWN = "no image or caption by its ending; name endings by --image_column and --caption_column"
_ARCHIVE = "an archive within the archive; unpack it, and name it among the sources"
_PACKED = {"tar", "tgz", "gz", "zip", "parquet", "tfrecord"}
_LINK = "a link to another file; pack the files, e.g. by tar --dereference --hard-dereference"
_HIDDEN = "hidden file or folder (its name begins with a dot)"


class Pairing:
    """Joins members to examples and keeps account of those that find no partner.

    Neighbours of the same key are one example.
    """

    def __init__(self, path: str, reading: Reading) -> None:
        self._path = path
        self._reading = reading
        self._images = tuple(map(str.lower, reading.image_column)) or IMAGE_ENDINGS
        texts = tuple(map(str.lower, reading.caption_column)) or TEXT_ENDINGS
        self._texts = tuple(dict.fromkeys((*texts, "json")))
        self._key: str | None = None
        self._parts: dict[str, bytes | None] = {}  # by ending; None is too large
        self._others: list[str] = []
        self._unread = ""  # why the image is None
        self._alone: dict[str, str] = {}  # key -> what it lacks

    def add(
        self, name: str, size: int, read: Callable[[], bytes] | None
    ) -> Iterator[RawExample | Dropped]:
        """Takes the next member; yields the example before it, if it ends there.

        `read` is None for a link to another file.
        """
        folder, file = posixpath.split(name)
        if file.startswith("."):
            yield Dropped(_HIDDEN, f"{self._path}: {name}")
            return
        stem, _, ending = (file.rpartition if self._reading.dotted_keys else file.partition)(".")
        key = posixpath.join(folder, stem).removeprefix("./")
        if key != self._key:
            yield from self._example()
            self._key, self._parts, self._others = key, {}, []
        ending = ending.lower()
        if ending in self._images:
            self._unread = LARGE_IMAGE if read else _LINK
            self._parts[ending] = read() if read and size <= MAX_IMAGE_BYTES else None
        elif ending in self._texts:
            if read:
                self._parts[ending] = read() if size <= MAX_TEXT_BYTES else None
        else:
            self._others.append(ending)

    def finish(self) -> Iterator[RawExample | Dropped]:
        """The last example and what has been found without its other half."""
        yield from self._example()
        for key, lacking in self._alone.items():
            yield Dropped(lacking, f"{self._path}: {key}")

    def _example(self) -> Iterator[RawExample | Dropped]:
        if self._key is None:
            return
        image = next((ending for ending in self._images if ending in self._parts), None)
        has_text = any(ending in self._parts for ending in self._texts)
        lasts = [ending.rpartition(".")[2] for ending in self._others if "." in ending]
        dotted = [sum(last in known for last in lasts) for known in (self._images, self._texts)]
        place = f"{self._path}: {self._key}"
        if image and has_text:
            yield self._whole(image, place)
            if any(dotted) and min(dotted):
                yield Dropped(_DOTTED, place, min(dotted))
        elif any(dotted):
            yield Dropped(_DOTTED, f"{place}.{self._others[0]}", max(dotted))
        elif image or has_text:
            yield from self._half(place, NO_CAPTION if image else NO_IMAGE)
        elif self._others:
            packed = _PACKED & {ending.rpartition(".")[2] for ending in self._others}
            yield Dropped(_ARCHIVE if packed else _UNKNOWN, f"{place}.{self._others[0]}")

    def _whole(self, image: str, place: str) -> RawExample:
        parts = {ending: self._parts[ending] for ending in self._texts if ending in self._parts}
        texts, faults = captions_in_parts(parts, self._reading)
        encoded = self._parts[image]
        return RawExample(
            self._key,
            encoded,
            tuple(texts),
            place,
            tuple(faults),
            no_image=NO_IMAGE if encoded is not None else self._unread,
        )

    def _half(self, place: str, lacking: str) -> Iterator[Dropped]:
        other = self._alone.pop(self._key, None)
        if other is not None and other != lacking:
            yield Dropped(_APART, place)
            return
        self._alone[self._key] = lacking
        if other is not None:
            yield Dropped(lacking, place)
