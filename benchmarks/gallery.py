"""Rate and memory of mining a gallery: `python -m benchmarks.gallery --captions 1000000`.

Captions are generated: words drawn by Zipf's law without an end, so that new words and phrases keep
coming, between articles and prepositions. The figures for 10 million captions are extrapolated: the
core time of the later half of the captions and of what is done at the end, both in proportion, and
the memory seen plus what the counters may still grow to and what the largest temporary file would
take when it is summed. Making captions is not counted.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.figures import print_figure
from benchmarks.process_memory import PeakMemory
from data_prep.gallery import counts
from data_prep.gallery.mining import MiningSettings, mine_gallery

_GOAL_CAPTIONS = 10_000_000
_EXPONENT = 1.15
_CHUNK = 1000
_FIRST_LETTERS = "bcdfghjklmnpqrstvwxyz"
_LETTERS = "etaoinshrd"  # of a word's rank, by digits
_GROWTH = 6  # of a line "phrase, tab, count" of 20 bytes as an entry of a counter


class ZipfCaptions:
    """Generated captions, and the core time that is spent between them.

    Attributes:
        half: core seconds used by the reader for the first half.
        whole: for all captions.
        ended: the core time when there were no more.
        disk: bytes in temporary files then, without what memory still holds.
        largest: bytes of the largest of them.
    """

    def __init__(self, count: int, temporary: pathlib.Path) -> None:
        self.half = self.whole = self.ended = self.disk = self.largest = 0
        self._count, self._temporary = count, temporary

    def __iter__(self) -> Iterator[str]:
        rng = np.random.default_rng(0)
        for done in range(0, self._count, _CHUNK):
            if done * 2 <= self._count:
                self.half = self.whole
            chunk = [_caption(ranks) for ranks in rng.zipf(_EXPONENT, (_CHUNK, 8)).tolist()]
            start = time.process_time()
            yield from chunk
            self.whole += time.process_time() - start
        files = [path.stat().st_size for path in self._temporary.rglob("*") if path.is_file()]
        self.disk, self.largest = sum(files), max(files, default=0)
        self.ended = time.process_time()


def main() -> None:
    """Prints one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=1_000_000, help="captions that are mined")
    arguments = parser.parse_args()
    scale = _GOAL_CAPTIONS / arguments.captions
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as peak:
        tempfile.tempdir = folder  # where the counts go
        captions = ZipfCaptions(arguments.captions, pathlib.Path(folder))
        mine_gallery(captions, MiningSettings())
        end = time.process_time()
        tempfile.tempdir = None
    later = captions.whole - captions.half
    print_figure("gallery_captions", arguments.captions, "captions", None)
    print_figure("gallery_rate", arguments.captions / 2 / later, "captions/s/core", None)
    at_end = end - captions.ended
    print_figure("gallery_end", at_end, "s", None, better="lower")
    print_figure("gallery_memory", peak.gigabytes, "GB", 2.0, better="lower")
    print_figure("gallery_disk", captions.disk / arguments.captions, "B/caption", None, "lower")
    minutes = scale * (2 * later + at_end) / 60
    print_figure("gallery_minutes_of_10M_captions", minutes, "min", 30.0, better="lower")
    bound = peak.gigabytes + (3 * _full_counter() + _GROWTH * scale * captions.largest) / 1e9
    print_figure("gallery_memory_of_10M_captions", bound, "GB", 2.0, better="lower")


def _caption(ranks: list[int]) -> str:
    a, b, c, d, e, f, g, h = map(_word, ranks)
    return f"a {a} {b} with the {c} and {d} {e} in {f}, {g} {h}"


def _word(rank: int) -> str:
    return _FIRST_LETTERS[rank % len(_FIRST_LETTERS)] + "".join(
        _LETTERS[int(digit)] for digit in str(rank % 10**8)
    )


def _full_counter() -> int:
    """Bytes of a counter before it is written: its table, its phrases, and numbers."""
    most = counts._MOST_COUNTERS
    table = sys.getsizeof(dict.fromkeys(range(most)))
    return table + most * (sys.getsizeof("w" + "e" * 20) + sys.getsizeof(1000))


if __name__ == "__main__":
    main()
