"""OpenMoji Scenes as a dataset on disk: deterministic, paired, contract-true, safe to interrupt."""

import dataclasses
import os
import pathlib
import signal

import numpy as np
import pytest

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus, read_shard
from cocu_jax.stopping import Stopped
from data_prep import __main__ as command_line
from data_prep.scenes import prepare
from data_prep.scenes.prepare import ScenesConfig, prepare_scenes
from data_prep.scenes.rendering import render_split

TINY = ScenesConfig(clip_scenes=40, pretrain_scenes=48, selection_scenes=8, validation_scenes=16)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    return prepare_scenes(TINY, str(tmp_path_factory.mktemp("scenes")))


def examples(directory: str, split: str, decode_images: bool = False) -> list[dict]:
    corpus = open_corpus(directory, split)
    return [
        {name: value.numpy() for name, value in example.items()}
        for shard in range(corpus.num_shards)
        for example in read_shard(corpus, shard, decode_images=decode_images)
    ]


def stored_bytes(directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).glob("*.tfrecord*")}


def test_equal_settings_give_equal_bytes_and_another_seed_does_not(directory, tmp_path):
    again = prepare_scenes(TINY, str(tmp_path / "again"))
    other = prepare_scenes(dataclasses.replace(TINY, seed=1), str(tmp_path / "other"))
    assert stored_bytes(directory) == stored_bytes(again)
    assert len(stored_bytes(directory)) == 5 * TINY.shards
    assert not set(stored_bytes(directory).values()) & set(stored_bytes(other).values())


def test_scenes_do_not_depend_on_the_number_of_processes():
    alone, shared = (list(render_split(TINY, "clip", processes=n)) for n in (1, 2))
    assert alone == shared


def test_examples_keep_the_feature_contract(directory):
    corpus = open_corpus(directory, "validation")
    assert corpus.metadata["classes"] == list(TINY.classes)
    assert corpus.metadata["has_background"] is False
    assert corpus.metadata["ignore_label"] == 255
    assert corpus.metadata["stuff_omitted"] == TINY.stuff_omitted
    assert "CC BY-SA 4.0" in corpus.metadata["credit"]
    gallery = corpus.metadata["gallery"]
    for example in examples(directory, "validation", decode_images=True):
        assert example["image"].shape == (64, 64, 3) and example["image"].dtype == np.uint8
        assert example["segmentation"].shape == (64, 64, 1)
        shown = {TINY.classes[label] for label in np.unique(example["segmentation"])}
        assert {gallery[i] for i in example["concepts"]} == shown
        assert example["caption_tokens"][0] == 49406 and example["caption_tokens"][-1] == 49407
        for name in ("caption_tokens", "caption_concepts", "concepts"):
            assert example[name].dtype == np.int32


def test_captions_name_all_some_or_the_declared_part_of_the_concepts(directory):
    for split in ("complete", "selection", "validation"):
        for example in examples(directory, split):
            assert set(example["caption_concepts"]) == set(example["concepts"])
    for split in ("clip", "pretrain"):
        for example in examples(directory, split):
            assert set() < set(example["caption_concepts"]) <= set(example["concepts"])
    gallery = open_corpus(directory, "pretrain").metadata["gallery"]
    named = [gallery[i] for e in examples(directory, "pretrain") for i in e["caption_concepts"]]
    assert sum(name in TINY.stuff for name in named) < 0.2 * len(named)


def test_complete_holds_the_pictures_of_pretrain_in_the_same_order(directory):
    pairs = zip(examples(directory, "pretrain"), examples(directory, "complete"), strict=True)
    for index, (gap, complete) in enumerate(pairs):
        assert gap["key"] == complete["key"] == f"pretrain-{index:07d}".encode()
        assert gap["image"] == complete["image"]
        assert gap["segmentation"] == complete["segmentation"]
    lengths = [open_corpus(directory, split).shard_lengths for split in ("pretrain", "complete")]
    assert lengths[0] == lengths[1] and len(lengths[0]) == TINY.shards


def test_splits_share_no_picture(directory):
    splits = ("clip", "pretrain", "selection", "validation")
    images = [{example["image"] for example in examples(directory, split)} for split in splits]
    assert len(set.union(*images)) == sum(map(len, images)) == 40 + 48 + 8 + 16


def test_a_prepared_corpus_is_not_drawn_again(directory, monkeypatch):
    def draw(*_):
        raise AssertionError("drew scenes that are there already")

    monkeypatch.setattr(prepare, "render_split", draw)
    assert prepare_scenes(TINY, str(pathlib.Path(directory).parents[2])) == directory


def test_interrupting_leaves_nothing_and_the_next_run_succeeds(tmp_path, monkeypatch):
    def interrupted(settings, split):
        for index, scene in enumerate(render_split(settings, split)):
            if split == "pretrain" and index == 5:
                os.kill(os.getpid(), signal.SIGINT)
            yield scene

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "render_split", interrupted)
        with pytest.raises(Stopped):
            prepare_scenes(TINY, str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert open_corpus(prepare_scenes(TINY, str(tmp_path)), "pretrain").num_examples == 48


def test_an_unwritable_place_is_one_clear_line(tmp_path):
    (tmp_path / "taken").write_text("a file, not a directory")
    with pytest.raises(UserError, match="taken: cannot write"):
        prepare_scenes(TINY, str(tmp_path / "taken"))


def test_the_command_draws_what_its_flags_say(tmp_path, capsys):
    flags = "--clip_scenes 8 --pretrain_scenes 8 --selection_scenes 8 --validation_scenes 8"
    flags += " --things car cat --stuff road snow --thing_size 0.4 0.5 --image_size 32"
    command_line.main(["scenes", "--data_dir", str(tmp_path), *flags.split()])
    directory = capsys.readouterr().out.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["openmoji_scenes"]
    assert open_corpus(directory, "clip").metadata["classes"] == ["car", "cat", "road", "snow"]


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["scenes", "--data_dir", str(tmp_path), "--things", "car", "unicycle"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: scenes.things: nothing is called 'unicycle'")
