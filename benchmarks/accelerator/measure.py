"""Seconds that a call takes on an accelerator, where calls return before their work is done."""

import statistics
import time
from collections.abc import Callable

import jax
import torch

_ROUNDS = 3
_MOST_CALLS = 200


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
