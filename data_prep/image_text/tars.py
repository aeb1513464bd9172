"""Reading WebDataset tars: neighbouring members with the same key are one example."""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from data_prep.image_text.formats import Dropped, RawExample, Reading
from data_prep.image_text.pairing import Pairing

_BUFFER = 1 << 20


def read_tar(path: str, reading: Reading) -> Iterator[RawExample | Dropped]:
    """Examples of a tar, in the memory of one; members that make no example are counted.

    Raises:
        tarfile.TarError, OSError, EOFError, zlib.error: after what can be read.
    """
    pairing, damage = Pairing(path, reading), None
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
                elif member.issym() or member.islnk():
                    yield from pairing.add(member.name, 0, None)
    except Exception as error:
        damage = error
    yield from pairing.finish()
    if damage:
        raise damage


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
