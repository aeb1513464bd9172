"""Galleries are read, completed with plurals, and kept in one order."""

import json

import pytest

from cocu_jax.errors import UserError
from data_prep.gallery.gallery import DEFAULT_GALLERY, Gallery, plural


def test_gallery_is_lower_case_unique_and_completed_with_plurals():
    gallery = Gallery.build(
        ["Dog", "  Fire  Truck ", "dog", "dogs", "people", "person", "Sheep", ""]
    )
    assert gallery.concepts == (
        "dog",
        "fire truck",
        "dogs",
        "people",
        "person",
        "sheep",
        "fire trucks",
    )


def test_building_from_a_built_gallery_changes_nothing(tmp_path):
    gallery = Gallery.load()
    assert Gallery.build(gallery.concepts) == gallery
    gallery.save(tmp_path / "gallery.json")
    assert Gallery.load(tmp_path / "gallery.json") == gallery


def test_lists_of_a_file_are_concatenated_whatever_their_keys(tmp_path):
    path = tmp_path / "gallery.json"
    path.write_text('{"concept": ["person", "girl"], "more": ["sky"]}')
    assert Gallery.load(path).concepts == ("person", "girl", "sky", "people", "girls", "skies")


@pytest.mark.parametrize(
    "content",
    ["", "[", "[]", "{}", '{"a": []}', '{"a": "dog"}', '{"a": [1]}', "3", '{"a": [" "]}', b"\xff"],
)
def test_file_that_is_no_gallery_is_refused_by_name(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"odd\.json"):
        Gallery.load(path)


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json"):
        Gallery.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"),
        ("police officer", "police officers"),
        ("bus", "buses"),
        ("wine glass", "wine glasses"),
        ("octopus", "octopuses"),
        ("city", "cities"),
        ("toy", "toys"),
        ("knife", "knives"),
        ("golf", "golf"),
        ("fireman", "firemen"),
        ("child", "children"),
        ("children", "children"),
        ("goose", "geese"),
        ("sheep", "sheep"),
        ("camera lens", "camera lenses"),
        ("jeans", "jeans"),
        ("scissors", "scissors"),
        ("t-shirt", "t-shirts"),
        ("boeing 747", "boeing 747s"),
        ("café", "cafés"),
        ("犬", "犬"),
    ],
)
def test_last_word_is_put_in_the_plural(one, many):
    assert plural(one) == many


def test_fingerprint_tells_concepts_and_order():
    gallery = Gallery(("dog", "cat"))
    assert gallery.fingerprint == Gallery(("dog", "cat")).fingerprint
    assert gallery.fingerprint != Gallery(("cat", "dog")).fingerprint


def test_default_gallery_is_written_as_promised():
    written = [
        concept for part in json.loads(DEFAULT_GALLERY.read_text()).values() for concept in part
    ]
    assert len(written) >= 1500
    assert len(set(written)) == len(written)
    assert all(concept == " ".join(concept.lower().split()) for concept in written)
    assert all(len(concept.split()) <= 4 and concept[-1].isalnum() for concept in written)
