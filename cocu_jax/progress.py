"""Progress bars: one live line on a terminal, a line every 15 seconds in a log file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LOG_INTERVAL_SECONDS = 15.0


def progress_bar(title: str, total: int, unit: str, done: int = 0) -> tqdm:
    """A bar with rate and estimated time left; call `update(n)` and, at the end, `close()`.

    Args:
        title: a few words about the work.
        total: number of units, including those already finished.
        unit: name of the units, e.g. `"images"`.
        done: units finished by an earlier run; they do not count towards the rate.
    """
    live = sys.stderr.isatty()
    return tqdm(
        desc=f"{title:<28}",
        total=total,
        initial=done,
        unit=f" {unit}",
        dynamic_ncols=live,
        mininterval=0.2 if live else _LOG_INTERVAL_SECONDS,
        maxinterval=10.0 if live else _LOG_INTERVAL_SECONDS,
        ascii=not live,
    )


def progress(items: Iterable[T], title: str, total: int, unit: str) -> Iterator[T]:
    """Yields `items` and shows a progress bar."""
    with progress_bar(title, total, unit) as bar:
        for item in items:
            yield item
            bar.update()
