"""Progress of long work: one live line on a terminal, a line now and then in a log file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LOG_INTERVAL_SECONDS = 15.0


def progress_bar(title: str, total: int, unit: str, done: int = 0) -> tqdm:
    """A bar with rate and estimated time left; call `update(n)` and, at the end, `close()`.

    Args:
        title: what is being done, a few words.
        total: how many units there are in all, the finished ones included.
        unit: what is counted, e.g. `"images"`.
        done: how many were finished by an earlier run; they do not count in the rate.
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
    """Yields `items` while a bar counts them."""
    with progress_bar(title, total, unit) as bar:
        for item in items:
            yield item
            bar.update()
