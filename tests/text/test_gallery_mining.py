"""A gallery mined from captions has their frequent nouns, and little else."""

import argparse
import random

import pytest

from cocu_jax.errors import UserError
from data_prep.gallery import mining
from data_prep.gallery.gallery import Gallery
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


def test_memory_bound_keeps_what_is_frequent(monkeypatch):
    monkeypatch.setattr(mining, "_MOST_COUNTERS", 60)
    gallery = mine_gallery(captions(), MiningSettings(size=500, min_count=30))
    assert set(NOUNS) <= set(gallery.concepts)


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
    mining.run(parser.parse_args(flags))
    concepts = Gallery.load(tmp_path / "g.json").concepts
    assert "beach" in concepts
    assert "street" not in concepts
    assert "concepts with plurals" in capsys.readouterr().out
