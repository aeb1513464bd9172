"""Curation's and evaluation's configs: every field's bad values are one line."""

import dataclasses

import pytest
from config_fields import leaves, with_value

from cocu_jax.curation.config import CurateConfig
from cocu_jax.curation.config import check_config as check_curate
from cocu_jax.curation.job import curate
from cocu_jax.errors import UserError
from cocu_jax.models.dense_clip import VARIANTS
from cocu_jax.run import expand_paths
from configs import cocu as cocu_file
from configs import curate as curate_file
from configs import evaluate as evaluate_file
from eval.config import CustomConfig, EvaluateConfig
from eval.config import check_config as check_evaluate
from eval.job import evaluate
from eval.protocol import DENSE

# Numbers for which 0 has a meaning, and those that may be left out.
ZERO = {
    "curate": {"seed", "cells", "staging_gb", "page_images", "tile_rows"},
    "evaluate": {"limit", "images_per_device", "windows_per_forward", "pictures", "bg_thresh"}
    | {"custom.bg_thresh"},
}
NONE = {"bg_thresh"}


def config_of(job: str):
    if job == "evaluate":
        config = evaluate_file.get_config()
        config.bg_thresh = 0.5  # empty by default; it is a number where it is set
        return config
    config = curate_file.get_config()
    config.corpus.directory = config.clip = "somewhere"
    return config


CHECKS = {"curate": check_curate, "evaluate": check_evaluate}
NUMBERS = [
    (job, name)
    for job in CHECKS
    for name, value in leaves(config_of(job))
    if isinstance(value, int | float) and not isinstance(value, bool)
]


def test_the_walk_meets_the_numbers():
    assert len(NUMBERS) == 11 + 10


@pytest.mark.parametrize("value", [0, -1, "three", None])
@pytest.mark.parametrize(("job", "name"), NUMBERS)
def test_a_number_that_is_not_allowed_is_one_line(job, name, value):
    bad = with_value(config_of(job), name, value)
    value = dict(leaves(bad))[name]  # a config turns 0 into 0.0 where it had a fraction
    if (value == 0 and name in ZERO[job]) or (value is None and name in NONE):
        return CHECKS[job](bad)
    with pytest.raises(UserError) as caught:
        CHECKS[job](bad)
    message = str(caught.value)
    assert message.startswith(f"config.{name}={value!r}: it must be ") and "\n" not in message


@pytest.mark.parametrize(
    ("job", "name", "value", "message"),
    [
        ("curate", "clusters", 1, "config.clusters=1: it must be a valid boolean"),
        ("curate", "dtype", "float16", "config.dtype='float16': it must be '', 'float32' or"),
        ("curate", "corpus.split", 3, "config.corpus.split=3: it must be a valid string"),
        ("curate", "index", ({"split": "train"},), r"config.index\[0\].directory is missing"),
        ("evaluate", "dense", "nacl", "config.dense='nacl': it must be '', 'clip', 'maskclip'"),
        ("evaluate", "protocol", "nacl", "config.protocol='nacl': it must be 'groupvit', 'tcl' or"),
        ("evaluate", "templates", "all", "config.templates='all': it must be '', 'simple', "),
        ("evaluate", "softmax", 1, "config.softmax=1: it must be a valid boolean"),
        ("evaluate", "custom.resize_long_short", (448,), "config.custom.resize_long_short=.*more"),
    ],
)
def test_other_values_that_are_not_allowed_are_one_line(job, name, value, message):
    with pytest.raises(UserError, match=message) as caught:
        CHECKS[job](with_value(config_of(job), name, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("run", "job"), [(curate, "curate"), (evaluate, "evaluate")])
def test_a_job_checks_its_config_before_it_opens_or_writes_anything(run, job, tmp_path):
    config = with_value(config_of(job), "seed" if job == "curate" else "limit", -1)
    with pytest.raises(UserError, match="=-1: it must be "):
        run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_every_field_has_a_default_in_its_file():
    for kind, part in (
        (CurateConfig, curate_file.get_config()),
        (EvaluateConfig, evaluate_file.get_config()),
        (CustomConfig, evaluate_file.get_config().custom),
    ):
        assert {field.name for field in dataclasses.fields(kind)} == set(part)


def test_images_may_keep_their_size():
    check_evaluate(with_value(config_of("evaluate"), "custom.resize_long_short", ()))


def test_the_names_of_dense_methods_are_those_of_the_model():
    assert DENSE == VARIANTS


def test_texts_of_a_config_are_places(monkeypatch):
    """Behind `--config.data_dir=` no shell spells `~` out."""
    monkeypatch.setenv("HOME", "/home/me")
    config = config_of("evaluate")
    config.update(data_dir="~/data", benchmarks="voc,~/own")
    expand_paths(config.lock())
    assert (config.data_dir, config.benchmarks) == ("/home/me/data", "voc,/home/me/own")
    config = config_of("curate")
    config.index = ({"directory": "~/index", "split": "train"},)
    expand_paths(config)
    assert config.index[0]["directory"] == "/home/me/index"
    config = cocu_file.get_config()
    config.data_root = "~/data"
    expand_paths(config)
    config.data_root += "/tfds"
    assert config.data.corpora[0].directory == "/home/me/data/tfds/image_text/cc3m"
    config.data_root = "https://a.org"
    with pytest.raises(UserError, match="https:// cannot be opened"):
        expand_paths(config)
