"""A gallery from a corpus: the noun phrases of 1 to 3 words that its captions use most.

No tagger is needed: what stands between an article and the end of a phrase ("a dog in …", "the
beach.") is a noun most of the time, and a word that rarely stands there is none.

    python -m data_prep gallery --corpus ~/tfds/image_text/cc3m/1.0.0 --output gallery.json
"""

import argparse
import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.progress import progress
from data_prep.gallery.gallery import Gallery, plural
from data_prep.gallery.words import Words

_OPENERS = frozenset(
    "a an the his her its their my our your this that these those some each".split()
)
_CLOSERS = frozenset(
    """. , ; : ! ? ) ( - -- ... '' `` '
    and or but with in on at of to for from by near under over behind beside between through into
    onto along across around above below against during after before while as is are was were be
    being has have had who which that where when 's against towards inside outside next up down off
    out about like than via""".split()
)
# Frequent in captions, and nothing to be seen.
STOP_WORDS = frozenset(
    """photo photograph picture image shot view background foreground front back side top bottom
    middle center centre left right day days morning afternoon night evening time times year years
    week month season way ways thing things part parts lot lots kind type set piece pair number
    first last end other one two three few bit area place places world life love work show
    style idea ideas fact name case close-up closeup same rest moment edge corner use order form
    version course variety event collection look beginning process future past story dream
    opportunity example addition state history quality date summer winter spring autumn fall
    people's person's illustration vector stock royalty abstract design concept
    isolated free""".split()
)
_NOUN_SHARE = 0.04  # of a noun's occurrences, at least so many stand right after an article
_MOST_WORDS = 3
_MOST_COUNTERS = 2_000_000


@dataclasses.dataclass(frozen=True)
class MiningSettings:
    """Which phrases are taken.

    Attributes:
        size: number of concepts, before plurals.
        min_count: occurrences that a concept needs.
        stop_words: words that no concept begins or ends with.
    """

    size: int = 2000
    min_count: int = 20
    stop_words: frozenset[str] = STOP_WORDS


def mine_gallery(captions: Iterable[str], settings: MiningSettings) -> Gallery:
    """The most frequent noun phrases, plurals counted with their singulars.

    Args:
        captions: all captions, read once.
        settings: how many, how frequent.

    Raises:
        UserError: no phrase is frequent enough.
    """
    words, nouns, phrases = _count(captions, settings.stop_words)
    singular_of = {plural(word): word for word in nouns if plural(word) != word}

    def folded(phrase: str) -> str:
        before, space, last = phrase.rpartition(" ")
        return before + space + singular_of.get(last, last)

    heads = {word for word, count in nouns.items() if count >= _NOUN_SHARE * words[word]}
    totals = collections.Counter()
    for phrase, count in phrases.items():
        if (concept := folded(phrase)).rpartition(" ")[2] in heads:
            totals[concept] += count
    # Equal counts in alphabetical order, so that the result does not depend on the captions' order.
    frequent = sorted(
        (concept for concept, count in totals.items() if count >= settings.min_count),
        key=lambda concept: (-totals[concept], concept),
    )
    if not frequent:
        raise UserError(
            f"no noun phrase occurs {settings.min_count} times; "
            "lower --min_count or give more captions"
        )
    return Gallery.build(frequent[: settings.size])


def _count(captions: Iterable[str], stop_words: frozenset[str]) -> tuple[collections.Counter, ...]:
    """How often words occur, words fill "a … ,", and runs of words end where a phrase ends."""
    split = Words()
    words, nouns, phrases = (collections.Counter() for _ in range(3))
    for caption in captions:
        tokens = ["", *split(caption), "."]
        for run, opened in _runs(tokens):
            words.update(run)
            if run[-1] in stop_words:
                continue
            if opened and len(run) == 1:
                nouns[run[0]] += 1
            for start in range(max(0, len(run) - _MOST_WORDS), len(run)):
                if run[start] not in stop_words:
                    phrases[" ".join(run[start:])] += 1
        if len(phrases) > _MOST_COUNTERS:
            _forget_rare(phrases)
    return words, nouns, phrases


def _runs(tokens: list[str]) -> Iterator[tuple[list[str], bool]]:
    """Runs of words between closers and openers, and whether an opener is before them."""
    opened = False
    for kind, group in itertools.groupby(tokens, _kind):
        if kind == "word":
            yield list(group), opened
        opened = kind == "opener"


def _kind(token: str) -> str:
    if token in _OPENERS:
        return "opener"
    return "word" if token not in _CLOSERS and token.replace("-", "").isalpha() else "closer"


def _forget_rare(counts: collections.Counter) -> None:
    """Drops the rarer half, which keeps memory flat; what is frequent in the end loses little."""
    limit = sorted(counts.values())[len(counts) // 2]
    for phrase in [phrase for phrase, count in counts.items() if count <= limit]:
        del counts[phrase]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `python -m data_prep gallery`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--corpus", required=True, help="prepared dataset, or text: a caption a line"
    )
    parser.add_argument("--split", default="train", help="split of the dataset (default: train)")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--size", type=int, default=2000, help="concepts before plurals")
    parser.add_argument("--min_count", type=int, default=20, help="occurrences a concept needs")
    parser.add_argument("--stop_words", help="file of words to leave out, instead of our own list")


def run(arguments: argparse.Namespace) -> None:
    """Mines a gallery and writes it."""
    stop_words = STOP_WORDS
    if arguments.stop_words:
        try:
            stop_words = frozenset(epath.Path(arguments.stop_words).read_text().lower().split())
        except OSError as error:
            raise UserError(f"{arguments.stop_words}: cannot be read ({error.strerror})") from None
    settings = MiningSettings(arguments.size, arguments.min_count, stop_words)
    gallery = mine_gallery(_captions(arguments.corpus, arguments.split), settings)
    gallery.save(arguments.output)
    print(f"{arguments.output}: {len(gallery.concepts)} concepts with plurals")


def _captions(corpus: str, split: str) -> Iterator[str]:
    path = epath.Path(corpus).expanduser()
    if path.exists() and not path.is_dir():
        with path.open("r") as lines:
            yield from progress(lines, "Captions", None, "captions")
        return
    # Text files do not need TensorFlow.
    from cocu_jax.input.corpus import open_corpus, read_shard

    dataset = open_corpus(str(path), split)
    for shard in progress(range(dataset.num_shards), "Shards", dataset.num_shards, "shards"):
        for example in read_shard(dataset, shard):
            yield from example["caption"].numpy().decode().split("\n")  # a caption a line
