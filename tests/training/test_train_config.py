"""Every setting has a field in the config files, and every field's bad values are one line."""

import dataclasses

import ml_collections
import numpy as np
import pytest
from config_fields import leaves, with_value

from cocu_jax.errors import UserError
from cocu_jax.input.config import CorpusConfig, InputConfig
from cocu_jax.models.clip import CLIPConfig
from cocu_jax.models.groupvit import GroupViTConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.training import evaluation
from cocu_jax.training.config import MeshConfig, TrainConfig, check_config
from cocu_jax.training.evaluation import EvaluationConfig, evaluation_settings
from cocu_jax.training.loop import FREE_FIELDS
from cocu_jax.training.plan import make_plan
from cocu_jax.workdir import open_workdir
from configs import clip, cocu, groupvit
from eval.protocol import Protocol
from eval.segmentation import SegmentationResult

# Numbers for which 0 has a meaning, and -1.
ZERO = {
    "seed",
    "data.corpora[0].weight",
    "data.mean[0]",
    "data.mean[1]",
    "data.mean[2]",
    "model.depths[0]",
    "model.depths[1]",
    "model.depths[2]",
    "model.drop_path",
    "model.dense_init_std",
    "model.assign_init_std",
    "model.group_token_init_std",
    "epochs",
    "total_steps",
    "start_learning_rate",
    "end_learning_rate",
    "warmup_epochs",
    "warmup_steps",
    "weight_decay",
    "betas[0]",
    "betas[1]",
    "ema_decay",
    "checkpoint_every",
    "checkpoint_minutes",
    "eval_every",
    "evaluation.every",
    "evaluation.limit",
    "evaluation.pictures",
    "evaluation.bg_thresh",
    "profile_at",
}
MINUS_ONE = {"mesh.data"}
NONE = {"evaluation.bg_thresh"}


@pytest.mark.parametrize(
    ("part", "settings", "elsewhere"),
    [
        (lambda: cocu.get_config(), TrainConfig, set()),
        (lambda: cocu.get_config().mesh, MeshConfig, set()),
        (lambda: cocu.get_config().data, InputConfig, set()),
        (lambda: cocu.get_config().data.corpora[0], CorpusConfig, set()),
        (lambda: cocu.get_config().model, GroupViTConfig, set()),
        (lambda: cocu.get_config().model.text, TextConfig, set()),
        (lambda: cocu.get_config().evaluation, EvaluationConfig, set()),
        (lambda: cocu.get_config().evaluation, Protocol, {"mean", "std"}),  # those of `data`
        (lambda: clip.get_config().model, CLIPConfig, set()),
        (lambda: clip.get_config().model.text, TextConfig, set()),
    ],
)
def test_every_field_of_every_dataclass_can_be_set(part, settings, elsewhere):
    names = {field.name for field in dataclasses.fields(settings)} - elsewhere
    assert names - set(part()) == set()


@pytest.mark.parametrize("variant", ["custom", "cc3m_cc12m_yfcc14m,base", "cc3m,large"])
def test_the_configs_that_are_shipped_are_good(variant):
    check_config(cocu.get_config(variant))
    check_config(groupvit.get_config(variant))
    check_config(clip.get_config(variant.split(",")[0]))


NUMBERS = [
    (kind, name)
    for kind, config in (("groupvit", cocu.get_config()), ("clip", clip.get_config()))
    for name, value in leaves(config)
    if isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "groupvit" or name.startswith("model.")
]


@pytest.mark.parametrize("value", [0, -1, "three", None])
@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_a_number_that_is_not_allowed_is_one_line(kind, name, value):
    config = {"groupvit": cocu, "clip": clip}[kind].get_config()
    config.total_steps = 10
    if name == "evaluation.bg_thresh" and value is None:
        config.evaluation.has_background = False
    bad = with_value(config, name, value)
    value = dict(leaves(bad))[name]  # a config turns 0 into 0.0 where it had a fraction
    if name in {0: ZERO, -1: MINUS_ONE, None: NONE}.get(value, ()):
        return check_config(bad)
    with pytest.raises(UserError) as caught:
        check_config(bad)
    message = str(caught.value)
    assert message.startswith(f"config.{name}={value!r}: it must be ") and "\n" not in message


def test_zeros_that_are_allowed_make_a_plan(tiny_config):
    config = tiny_config()
    for name in sorted(ZERO - {"data.corpora[0].weight", "epochs", "total_steps"}):
        if not name.startswith("evaluation") and name in dict(leaves(config)):
            config = with_value(config, name, 0)
    assert make_plan(config, examples=96).total_steps == 6


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "model.text.vocab_size",
            100,
            r"config.model.text.vocab_size=100: it must be at least 49408",
        ),
        ("data.augment", "all", r"config.data.augment='all': it must be 'none', 'crop' or 'full'"),
        ("data.concepts", "", r"config.data.concepts='': it must be 'cluster', 'top', "),
        ("data.crop_area", (0.5, 0.1), r"config.data.crop_area=\(0.5, 0.1\): give the smallest"),
        ("data.crop_area", (0.5,), r"config.data.crop_area=\(0.5,\): it must have more than 1"),
        ("data.crop_area", 0.5, r"config.data.crop_area=0.5: it must be a valid tuple"),
        ("data.corpora", (), "config.data.corpora is empty"),
        ("data.caption_length", 90, "config.data.caption_length=90: it must be at most .*=77"),
        ("data.image_size", 230, "config.data.image_size=230: it must be a multiple of .*=16"),
        ("model.heads", 7, "config.model.heads=7: it must divide config.model.width=384"),
        ("model.text.heads", 3, "text.heads=3: it must divide config.model.text.width=256"),
        ("model.text.activation", "relu", "activation='relu': it must be 'quick_gelu' or 'gelu'"),
        ("model.dtype", "float16", "dtype='float16': it must be 'float32' or 'bfloat16'"),
        ("model.depths", (6, 3), r"config.model.depths=\(6, 3\): it must have more than 2"),
        ("model.remat", 1, "config.model.remat=1: it must be a valid boolean"),
        (
            "objective",
            "clip",
            "there is no such field in a model of objective 'clip'; ",
        ),
        ("objective", "mae", "config.objective='mae': it must be 'groupvit' or 'clip'"),
        ("epochs", 0.0, "config.total_steps=0 and config.epochs=0"),
        ("learning_rate", float("nan"), "config.learning_rate=nan: it must be"),
        ("evaluation.stride", 500, "stride=500 leaves gaps between windows of 448"),
        ("evaluation.templates", "all", "templates='all': it must be 'simple', 'subset'"),
        ("compile_cache", 3, "config.compile_cache=3: it must be a valid string"),
    ],
)
def test_other_values_that_are_not_allowed_are_one_line(name, value, message):
    with pytest.raises(UserError, match=message) as caught:
        check_config(with_value(cocu.get_config(), name, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("accumulate", 3, "config.accumulate=3: it must divide the 2 examples of a device"),
        ("epochs", 0.01, "config.epochs=0.01: less than one step with 96 examples"),
    ],
)
def test_values_that_do_not_fit_the_machine_or_the_data_are_one_line(
    tiny_config, field, value, message
):
    config = tiny_config()
    config.total_steps = 0
    config[field] = value
    with pytest.raises(UserError, match=message):
        make_plan(config, examples=96)


def test_what_does_not_change_what_is_learned_may_change_between_restarts(tmp_path):
    first = cocu.get_config()
    open_workdir(str(tmp_path), first, FREE_FIELDS)
    moved = cocu.get_config()
    moved.data_root = "gs://elsewhere/data"  # and with it the corpora, annotations, the benchmark
    moved.model.remat = True
    moved.export = False
    moved.evaluation.pictures = moved.mesh.fsdp = moved.accumulate = 4
    moved.eval_every = moved.checkpoint_every = moved.nonfinite_limit = 7
    open_workdir(str(tmp_path), moved, FREE_FIELDS)
    moved.evaluation = None
    open_workdir(str(tmp_path), moved, FREE_FIELDS)
    with pytest.raises(UserError, match=r"config.data.corpora\[0\].split=train, this run has val"):
        open_workdir(str(tmp_path), with_value(first, "data.corpora[0].split", "val"), FREE_FIELDS)
    for name in ("data.window", "model.depths[1]", "learning_rate", "epochs", "batch_size", "seed"):
        with pytest.raises(UserError, match="made with config"):
            open_workdir(str(tmp_path), with_value(first, name, 5), FREE_FIELDS)


def test_evaluation_may_be_none_one_or_several():
    config = cocu.get_config()
    one = evaluation_settings(config)
    assert [(s.every, p.bg_thresh) for s, p in one] == [(2500, 0.95)]
    context = dict(directory="/data/segmentation/context/1.0.0", split="validation", every=500)
    config.unlock()
    with config.ignore_type():
        config.evaluation = (config.evaluation, ml_collections.ConfigDict(context))
        assert [settings.every for settings, _ in evaluation_settings(config)] == [2500, 500]
        config.evaluation[1].limits = 3
        with pytest.raises(UserError, match=r"config.evaluation\[1\].limits: there is no such"):
            check_config(config)
        for nothing in (None, (), ml_collections.ConfigDict()):
            config.evaluation = nothing
            check_config(config)
            assert evaluation_settings(config) == []


def test_evaluation_of_a_model_without_groups_has_figures_alone(monkeypatch):
    counts = np.array([[3, 1], [0, 4]])
    result = SegmentationResult(("dog", "sky"), counts, None, images=2)
    monkeypatch.setattr(evaluation, "evaluate_segmentation", lambda *_, **__: result)
    settings = EvaluationConfig("somewhere", "validation")
    found = evaluation.Evaluation(None, Protocol(), settings, "evaluation")(None, lambda _: False)
    assert found["evaluation/miou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert all(isinstance(value, float) for value in found.values())
