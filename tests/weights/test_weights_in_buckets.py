"""Models in a bucket."""

import pytest
import small_checkpoints as small

from cocu_jax.errors import UserError
from cocu_jax.models.weights.huggingface import load_clip, load_groupvit, save_groupvit
from cocu_jax.models.weights.official import save_official


def test_model_goes_to_a_bucket_and_comes_back(bucket, tmp_path):
    small.groupvit_oracle().save_pretrained(tmp_path / "in")
    model = load_groupvit(tmp_path / "in")
    save_groupvit(model, "gs://bucket/run/export")
    assert (bucket.folder / "run" / "export" / "config.json").is_file()
    small.assert_identical(load_groupvit("gs://bucket/run/export"), model)
    save_official(model, "gs://bucket/run/model.pth")
    assert (bucket.folder / "run" / "model.pth").is_file()


def test_empty_place_in_a_bucket_is_named(bucket):
    with pytest.raises(UserError, match="nothing: no such folder"):
        load_clip("gs://bucket/nothing")


def test_bucket_out_of_reach_is_named(bucket, monkeypatch):
    def unreachable(*_):
        raise RuntimeError("no route to the bucket")

    monkeypatch.setattr(type(bucket), "glob", unreachable)
    with pytest.raises(UserError, match="not readable .no route to the bucket"):
        load_clip("gs://bucket/nothing")
