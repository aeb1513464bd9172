"""Reading WebDataset tars: neighbouring members with the same key are one example."""

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from etils import epath

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

_BUFFER = 1 << 20
_APART = "members of a pair are not adjacent; repack the tar sorted by name"
_DOTTED = (
    "name with several dots; give --dotted_keys if keys have dots, "
    "or name the endings by --image_column and --caption_column"
)
_UNKNOWN = "no image or caption by its ending; name endings by --image_column and --caption_column"
_HIDDEN = "hidden file (its name begins with a dot)"


def read_tar(path: str, reading: Reading) -> Iterator[RawExample | Dropped]:
    """Examples of a tar, in the memory of one; members that make no example are counted.

    Raises:
        tarfile.TarError, OSError, EOFError, zlib.error: after what can be read.
    """
    pairing, damage = _Pairing(path, reading), None
    try:
        with (
            epath.Path(path).open("rb") as file,
            tarfile.open(
                fileobj=file, mode=_mode(path, file), bufsize=_BUFFER, tarinfo=_Header
            ) as members,
        ):
            while member := members.next():
                members.members.clear()  # or every header stays in memory
                if member.isfile():
                    read = lambda member=member: members.extractfile(member).read()  # noqa: E731
                    yield from pairing.add(member.name, member.size, read)
    except Exception as error:
        damage = error
    yield from pairing.finish()
    if damage:
        raise damage


class _Pairing:
    """Joins members to examples and keeps account of those that find no partner."""

    def __init__(self, path: str, reading: Reading) -> None:
        self._path = path
        self._reading = reading
        self._images = tuple(map(str.lower, reading.image_column)) or IMAGE_ENDINGS
        texts = tuple(map(str.lower, reading.caption_column)) or TEXT_ENDINGS
        self._texts = tuple(dict.fromkeys((*texts, "json")))
        self._key: str | None = None
        self._parts: dict[str, bytes | None] = {}  # by ending; None is too large
        self._others: list[str] = []
        self._alone: dict[str, str] = {}  # key -> what it lacks

    def add(
        self, name: str, size: int, read: Callable[[], bytes]
    ) -> Iterator[RawExample | Dropped]:
        """Takes the next member; yields the example before it, if it ends there."""
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
            self._parts[ending] = read() if size <= MAX_IMAGE_BYTES else None
        elif ending in self._texts:
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
            yield Dropped(_UNKNOWN, f"{place}.{self._others[0]}")

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
            no_image=NO_IMAGE if encoded is not None else LARGE_IMAGE,
        )

    def _half(self, place: str, lacking: str) -> Iterator[Dropped]:
        other = self._alone.pop(self._key, None)
        if other is not None and other != lacking:
            yield Dropped(_APART, place)
            return
        self._alone[self._key] = lacking
        if other is not None:
            yield Dropped(lacking, place)


def _mode(path: str, file: BinaryIO) -> str:
    """`r:` seeks in plain local tars, four times faster; `r|*` streams compressed and far ones."""
    if "://" in path:
        return "r|*"
    magic = file.read(262)[257:]
    file.seek(0)
    return "r:" if magic == b"ustar" else "r|*"


class _Header(tarfile.TarInfo):
    """A header that tells where a tar ends from where it was cut off or overwritten.

    `tarfile` takes all three for the end.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:
            if tarfile_.fileobj.read(_BUFFER).strip(b"\0"):
                raise tarfile.ReadError(
                    "goes on after its end mark, as tars do that were joined; split it"
                ) from None
            raise
        except tarfile.EmptyHeaderError:
            raise tarfile.ReadError(
                "no end mark after the last member; the tar may have been cut off there"
            ) from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header ({error})") from None
