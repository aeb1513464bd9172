"""A gallery from a corpus: the noun phrases of 1 to 3 words that its captions use most.

No tagger is needed: the words between an article and the end of a phrase ("a dog in …", "the
beach.") usually form a noun phrase, and a word that rarely occurs there is not a noun.

    python -m data_prep gallery --corpus ~/tfds/image_text/cc3m/1.0.0 --output gallery.json
"""

import argparse
import collections
import dataclasses
import itertools
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.progress import progress
from data_prep.gallery.counts import Counts
from data_prep.gallery.gallery import Gallery, plural, possible_singulars
from data_prep.gallery.words import WordSplitter

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

    All counts are exact. Memory does not grow with the captions: counts of rare phrases go to
    temporary files, some tens of bytes a caption.

    Args:
        captions: all captions, read once.
        settings: how many, how frequent.

    Raises:
        UserError: no phrase is frequent enough.
    """
    with tempfile.TemporaryDirectory(prefix="gallery-") as folder:
        words, nouns, phrases = (
            Counts(pathlib.Path(folder, name)) for name in ("words", "nouns", "phrases")
        )
        _count(captions, settings.stop_words, words, nouns, phrases)
        singular_of = _singulars(phrases, nouns, settings.min_count)
        totals = _folded(phrases, singular_of, settings.min_count)
        last_words = {concept.rpartition(" ")[2] for concept in totals}
        occurrences = words.of(last_words)
        heads = {
            word
            for word, count in nouns.of(last_words).items()
            if count >= _NOUN_SHARE * occurrences[word]
        }
    # Equal counts in alphabetical order, so that the result does not depend on the captions' order.
    frequent = sorted(
        (concept for concept in totals if concept.rpartition(" ")[2] in heads),
        key=lambda concept: (-totals[concept], concept),
    )
    if not frequent:
        raise UserError(
            f"no noun phrase occurs {settings.min_count} times; "
            "lower --min_count or give more captions"
        )
    return Gallery.build(frequent[: settings.size])


def _count(
    captions: Iterable[str],
    stop_words: frozenset[str],
    words: Counts,
    nouns: Counts,
    phrases: Counts,
) -> None:
    """Counts words, words that fill "a … ,", and n-grams that end where a phrase ends."""
    split = WordSplitter()
    for caption in captions:
        found, after_article, ends = [], [], []
        for run, opened in _runs(["", *split(caption), "."]):
            found += run
            if run[-1] in stop_words:
                continue
            if opened and len(run) == 1:
                after_article += run
            for start in range(max(0, len(run) - _MOST_WORDS), len(run)):
                if run[start] not in stop_words:
                    ends.append(" ".join(run[start:]))
        words.update(found)
        nouns.update(after_article)
        phrases.update(ends)


def _singulars(phrases: Counts, nouns: Counts, min_count: int) -> dict[str, str]:
    """Plurals of nouns, each with its singular, of all words that a concept may end with.

    Of a concept's singular and plural, one has half of the occurrences that both need; only such
    words are inflected, because that takes half a millisecond a word.
    """
    last_words = {
        phrase.rpartition(" ")[2]
        for part in phrases.parts()
        for phrase, count in part.items()
        if 2 * count >= min_count
    }
    candidates = last_words.union(*map(possible_singulars, last_words))
    occurrences = nouns.of(candidates)
    singular_of = {}
    # Of two singulars of one plural, the frequent one is meant.
    for word in sorted(occurrences, key=lambda word: (occurrences[word], word)):
        many = plural(word)
        if many != word and many[0] == word[0]:  # "we" is no plural to count with "i"
            singular_of[many] = word
    return singular_of


def _folded(phrases: Counts, singular_of: dict[str, str], min_count: int) -> dict[str, int]:
    """Occurrences of the frequent phrases, plurals counted with their singulars."""
    frequent = {}
    for part in phrases.parts():
        totals = collections.Counter()
        for phrase, count in part.items():
            before, space, last = phrase.rpartition(" ")
            totals[before + space + singular_of.get(last, last)] += count
        frequent |= {phrase: count for phrase, count in totals.items() if count >= min_count}
    return frequent


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
    if arguments.size < 1 or arguments.min_count < 1:
        raise UserError("--size and --min_count: give 1 at least")
    stop_words = STOP_WORDS
    if arguments.stop_words:
        try:
            stop_words = frozenset(epath.Path(arguments.stop_words).read_text().lower().split())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(f"{arguments.stop_words}: cannot be read ({reason})") from None
    settings = MiningSettings(arguments.size, arguments.min_count, stop_words)
    gallery = mine_gallery(_captions(arguments.corpus, arguments.split), settings)
    gallery.save(arguments.output)
    print(f"{arguments.output}: {len(gallery.concepts)} concepts with plurals")


def _captions(corpus: str, split: str) -> Iterator[str]:
    path = epath.Path(corpus).expanduser()
    if path.exists() and not path.is_dir():
        yield from _lines(path)
        return
    # Text files do not need TensorFlow.
    from cocu_jax.host_tensorflow import keep_off_accelerators
    from cocu_jax.input.corpus import open_corpus, read_shard

    keep_off_accelerators()

    dataset = open_corpus(str(path), split)
    for shard in progress(range(dataset.num_shards), "Shards", dataset.num_shards, "shards"):
        for example in read_shard(dataset, shard):
            yield from example["caption"].numpy().decode().split("\n")  # a caption a line


def _lines(path: epath.Path) -> Iterator[str]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(progress(lines, "Captions", None, "captions"), 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{path}, line {number}: not UTF-8; convert it, e.g. iconv -f LATIN1 -t UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
