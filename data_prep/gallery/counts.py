"""Exact counts of phrases in bounded memory."""

import collections
import pathlib
import zlib
from collections.abc import Iterable, Iterator

_MOST_COUNTERS = 1_000_000
_PARTS = 64


class Counts:
    """Counts phrases; when there are too many different ones, partial counts are written to disk.

    A hash selects one of several files, so that all counts of a phrase are in the same file and
    each file fits into memory when it is summed. Phrases that differ only after the first letter of
    their last word, such as singular and plural, share a file.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Empty counts; a temporary folder is created when it is needed."""
        self._folder = folder
        self._counter: collections.Counter[str] = collections.Counter()

    def update(self, phrases: Iterable[str]) -> None:
        """Counts each phrase once more; phrases have no tabs or line ends."""
        self._counter.update(phrases)
        if len(self._counter) > _MOST_COUNTERS:
            self._write()

    def parts(self) -> Iterator[collections.Counter[str]]:
        """The counts of all phrases, in parts; each phrase is in one part."""
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
        """The nonzero counts of some phrases."""
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
