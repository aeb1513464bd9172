"""Selects some shards of a corpus, without a copy: `train[:10%]`, `train[::4]`."""

import dataclasses
import hashlib
import re
from fractions import Fraction

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus

_PLACE = r"(\d+(?:\.\d+)?%|\d+shard)?"
_SLICE = re.compile(rf"\[{_PLACE}:{_PLACE}(?::(\d+))?\]")


def split_and_part(text: str) -> tuple[str, str]:
    """Splits "train[:10%]" into ("train", "[:10%]"); the second string may be empty."""
    split, bracket, part = text.partition("[")
    return split, bracket + part


def shards_of_part(part: str, shards: int, where: str) -> tuple[int, ...]:
    """Indices of the shards in a part.

    Args:
        part: `[start:stop]` or `[start:stop:step]`. Start and stop are shard indices (`8shard`), or
            percentages of the shards, rounded to the nearest index. A part that stops
            after it starts has at least one shard.
        shards: number of shards.
        where: name of the split, for error messages.

    Raises:
        UserError: `part` has another form, or contains no shard.
    """
    match = _SLICE.fullmatch(part)
    step = int(match.group(3) or 1) if match else 0
    if not step:
        raise UserError(
            f"{where}: {part!r} is not a part like [:10%], [10%:20%], [8shard:] or [::4], "
            "which is every fourth shard"
        )
    start, stop = _place(match.group(1), shards, 0), _place(match.group(2), shards, shards)
    first, last = (int(place + Fraction(1, 2)) for place in (start, stop))
    if start < stop and first == last:
        first, last = min(first, shards - 1), min(first, shards - 1) + 1
    numbers = tuple(range(first, last, step))
    if not numbers:
        raise UserError(f"{where}: {part!r} contains none of its {shards} shards")
    return numbers


def part_of(corpus: Corpus, part: str) -> Corpus:
    """The corpus reduced to a part of its shards, whose embeddings remain valid.

    Raises:
        UserError: see `shards_of_part`.
    """
    where = f"{corpus.directory}, split {corpus.split}"
    numbers = shards_of_part(part, corpus.num_shards, where)
    if len(numbers) == corpus.num_shards:
        return corpus
    identity = f"{corpus.fingerprint} {numbers}".encode()
    return dataclasses.replace(
        corpus,
        shard_files=tuple(corpus.shard_files[i] for i in numbers),
        shard_lengths=tuple(corpus.shard_lengths[i] for i in numbers),
        fingerprint=hashlib.sha256(identity).hexdigest()[:16],
        part_of=corpus.fingerprint,
        part=numbers,
    )


def _place(text: str | None, shards: int, default: int) -> Fraction:
    """Where a part starts or stops, in shards."""
    if not text:
        return Fraction(default)
    if text.endswith("shard"):
        return Fraction(min(int(text.removesuffix("shard")), shards))
    share = Fraction(text.removesuffix("%")) / 100
    return min(share * shards, Fraction(shards))
