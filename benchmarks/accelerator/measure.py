"""Seconds that a call takes on an accelerator, where calls return before their work is done."""

import contextlib
import fcntl
import os
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import torch

_ROUNDS = 3
_MOST_CALLS = 200

# Environment variable: the file that parts lock while they use the card.
CARD_LOCK = "ACCELERATOR_BENCHMARK_LOCK"


@contextlib.contextmanager
def card() -> Iterator[None]:
    """Context manager: waits until no other part uses the card.

    Parts compile side by side, but measure one after the other. XLA's compiler measures, too.
    """
    path = os.environ.get(CARD_LOCK)
    with open(path, "a") if path else contextlib.nullcontext() as file:
        if file:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def seconds_of(run: Callable[[], object], wait: Callable[[object], object], tiny: bool) -> float:
    """Median over rounds of calls one after the other, of which the last is waited for.

    Args:
        run: the call; its results may depend on one another.
        wait: returns when the work behind a result of `run` is done.
        tiny: one call, whose time means nothing.
    """

    def timed(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        return (time.perf_counter() - start) / calls

    first = timed(1)  # compiles, or tunes
    if tiny:
        return first
    timed(1)
    calls = max(1, min(_MOST_CALLS, round(0.5 / timed(1))))
    return statistics.median(timed(calls) for _ in range(_ROUNDS))


def wait_for_jax(result) -> None:
    """Waits for arrays."""
    jax.block_until_ready(result)


def wait_for_torch(_) -> None:
    """Waits for everything that was given to the card."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_device() -> str:
    """Where torch computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_backend(tiny: bool) -> str:
    """Backend of `torch.compile`; at toy sizes one that compiles nothing."""
    return "eager" if tiny else "inductor"
