"""Exact counts of more phrases than memory holds."""

import collections
import pathlib
import zlib
from collections.abc import Iterable, Iterator

_MOST_COUNTERS = 1_000_000
_PARTS = 64


class Counts:
    """Counts phrases; when there are too many different ones, the counts so far go to disk.

    They go to one of several files by a hash, so that all counts of a phrase meet in one file and
    each file fits into memory when it is summed. Phrases that differ only behind the first letter
    of their last word, as singular and plural do, are in the same file.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Counts with an empty folder of their own, which is made when it is needed."""
        self._folder = folder
        self._counter: collections.Counter[str] = collections.Counter()

    def update(self, phrases: Iterable[str]) -> None:
        """Counts each phrase once more; phrases have no tabs or line ends."""
        self._counter.update(phrases)
        if len(self._counter) > _MOST_COUNTERS:
            self._write()

    def parts(self) -> Iterator[collections.Counter[str]]:
        """The counts of all phrases, each phrase in one part only."""
        if not self._folder.exists():
            yield self._counter
            return
        self._write()
        for file in sorted(self._folder.iterdir()):
            total = collections.Counter()
            with file.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    phrase, _, count = line.partition("\t")
                    total[phrase] += int(count)
            yield total

    def of(self, phrases: Iterable[str]) -> dict[str, int]:
        """The counts of some phrases, 0 left out."""
        wanted = set(phrases)
        return {phrase: part[phrase] for part in self.parts() for phrase in wanted & part.keys()}

    def _write(self) -> None:
        self._folder.mkdir(exist_ok=True)
        lines = [[] for _ in range(_PARTS)]
        for phrase, count in self._counter.items():
            lines[_part(phrase)].append(f"{phrase}\t{count}\n")
        for number, part in enumerate(lines):
            with (self._folder / f"{number:02d}").open("a", encoding="utf-8") as file:
                file.writelines(part)
        self._counter.clear()


def _part(phrase: str) -> int:
    before, _, last = phrase.rpartition(" ")
    return zlib.crc32(f"{before} {last[:1]}".encode()) % _PARTS
