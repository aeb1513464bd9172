"""A gallery mined from captions has their frequent nouns, and little else."""

import argparse
import collections
import random

import pytest

from cocu_jax.errors import UserError
from data_prep.gallery import counts, mining
from data_prep.gallery.gallery import Gallery, plural
from data_prep.gallery.mining import MiningSettings, mine_gallery

NOUNS = "dog cat woman man boy street beach tree bicycle kitchen truck racket cub".split()
COMPOUNDS = ["fire truck", "tennis racket", "polar bear cub"]
ADJECTIVES = "young old red beautiful large".split()
VERBS = "walking sitting running stands holds".split()
PREPOSITIONS = "in on near with under behind".split()
PLURALS = {"dog": "dogs", "fire truck": "fire trucks"}


def captions(count: int = 4000) -> list[str]:
    draw = random.Random(0)

    def phrase() -> str:
        thing = draw.choice(NOUNS + COMPOUNDS)
        if thing in PLURALS and draw.random() < 0.5:
            return f"two {PLURALS[thing]}"
        adjective = f"{draw.choice(ADJECTIVES)} " if draw.random() < 0.4 else ""
        return f"{draw.choice(['a', 'the', 'her'])} {adjective}{thing}"

    templates = (
        lambda: f"{phrase()} {draw.choice(VERBS)} {draw.choice(PREPOSITIONS)} {phrase()}",
        lambda: f"photo of {phrase()}, {phrase()} and {phrase()}.",
        lambda: f"{phrase()} {draw.choice(PREPOSITIONS)} {phrase()} at night",
        lambda: f"the background: {phrase()}",
    )
    return [draw.choice(templates)() for _ in range(count)]


@pytest.fixture(scope="module")
def mined():
    return mine_gallery(captions(), MiningSettings(size=500, min_count=30))


def test_frequent_nouns_and_compounds_are_found(mined):
    assert {*NOUNS, *COMPOUNDS} <= set(mined.concepts)


def test_plurals_are_counted_with_their_singulars(mined):
    concepts = list(mined.concepts)
    assert concepts.index("dogs") > max(concepts.index(noun) for noun in NOUNS)
    assert "fire trucks" in concepts
    only = mine_gallery(["a dog."] * 6 + ["two dogs."] * 6 + ["a cat."] * 9, MiningSettings(1, 2))
    assert only.concepts == ("dog", "dogs")


def test_adjectives_verbs_and_stop_words_are_no_concepts_alone(mined):
    assert not {*ADJECTIVES, *VERBS, "photo", "background", "night", "a"} & set(mined.concepts)


def test_size_and_order_are_by_frequency_whatever_the_order_of_captions():
    texts = captions(1500)
    settings = MiningSettings(size=10, min_count=5)
    gallery = mine_gallery(texts, settings)
    assert gallery == mine_gallery(reversed(texts), settings)
    assert len(gallery.concepts) <= 20


def test_counts_on_disk_give_the_same_gallery(monkeypatch):
    settings = MiningSettings(size=500, min_count=3)
    texts = [*captions(1500), *(f"a rare{'abcdefghij'[n % 10] * (n // 10)}." for n in range(900))]
    expected = mine_gallery(texts, settings)
    written, write = [], counts.Counts._write
    monkeypatch.setattr(counts, "_MOST_COUNTERS", 60)
    monkeypatch.setattr(counts.Counts, "_write", lambda self: (written.append(1), write(self)))
    assert mine_gallery(texts, settings) == expected
    assert len(written) > 20


def test_counts_are_those_of_a_counter(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "_MOST_COUNTERS", 50)
    draw = random.Random(1)
    texts = [f"big {'abc'[draw.randrange(3)]}{int(draw.paretovariate(0.5))}" for _ in range(2000)]
    ours, expected = counts.Counts(tmp_path / "x"), collections.Counter(texts)
    for start in range(0, len(texts), 7):
        ours.update(texts[start : start + 7])
    assert sum(ours.parts(), collections.Counter()) == expected
    assert ours.of(["nothing", *texts[:9]]) == {text: expected[text] for text in texts[:9]}


def test_only_words_that_may_be_kept_are_inflected(monkeypatch):
    inflected = []
    monkeypatch.setattr(mining, "plural", lambda word: inflected.append(word) or plural(word))
    rare = [
        f"a {'abcdefghijklmnopqrst'[n % 20]}{'xyz'[n % 3] * (n // 20 + 2)}." for n in range(400)
    ]
    common = (
        ["a dog."] * 9 + ["two people."] * 9 + ["a person."] + ["two wolves."] * 9 + ["a wolf."]
    )
    gallery = mine_gallery([*rare, *common], MiningSettings(9, 6))
    assert set(gallery.concepts) == {"dog", "dogs", "person", "people", "wolf", "wolves"}
    assert len(inflected) < 10


def test_of_two_singulars_of_one_plural_the_frequent_one_counts():
    texts = ["a potato.", "a potato.", "a potatoe."] + ["two potatoes."] * 8 + ["a dog."] * 9
    for order in (texts, texts[::-1]):
        assert mine_gallery(order, MiningSettings(1, 2)).concepts[0] == "potato"


def test_latin_1_is_told_in_one_line(tmp_path):
    (tmp_path / "captions.txt").write_bytes("a dog\na café\n".encode("latin-1"))
    parser = argparse.ArgumentParser()
    mining.add_arguments(parser)
    flags = ["--corpus", f"{tmp_path}/captions.txt", "--output", f"{tmp_path}/g.json"]
    with pytest.raises(UserError, match="captions.txt, line 2: not UTF-8; convert it"):
        mining.run(parser.parse_args(flags))
    assert not (tmp_path / "g.json").exists()


def test_nothing_frequent_is_an_error():
    with pytest.raises(UserError, match="lower --min_count"):
        mine_gallery(["a dog", ""], MiningSettings(min_count=2))


def test_command_reads_text_and_writes_a_gallery(tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("\n".join(captions(300)))
    (tmp_path / "stop.txt").write_text("street\n")
    parser = argparse.ArgumentParser()
    mining.add_arguments(parser)
    flags = "--corpus captions.txt --output g.json --min_count 5 --stop_words stop.txt".split()
    flags = [str(tmp_path / flag) if "." in flag else flag for flag in flags]
    with pytest.raises(UserError, match="--size and --min_count: give 1 at least"):
        mining.run(parser.parse_args([*flags, "--size", "0"]))
    mining.run(parser.parse_args(flags))
    concepts = Gallery.load(tmp_path / "g.json").concepts
    assert "beach" in concepts
    assert "street" not in concepts
    assert "concepts with plurals" in capsys.readouterr().out
