"""A model and a corpus small enough to train in a test."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from miniature_corpus import encode, picture, write_annotations, write_corpus

from cocu_jax.models.layers import Projector
from cocu_jax.training.objective import Features, Objective, example_keys, groupvit_loss
from configs import cocu
from data_prep.scenes.prepare import prepare_scenes
from data_prep.scenes.settings import ScenesConfig


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> str:
    """Directory of a corpus of few small scenes."""
    settings = ScenesConfig(
        image_size=32,
        clip_scenes=64,
        pretrain_scenes=96,
        selection_scenes=16,
        validation_scenes=16,
        shards=2,
    )
    return prepare_scenes(settings, str(tmp_path_factory.mktemp("scenes")))


@pytest.fixture(scope="session")
def tiny_config():
    """(objective="groupvit") -> the published config at the size of a few thousand weights."""
    return _tiny_config


@pytest.fixture(scope="session")
def random_batch():
    """(config, seed=0) -> a batch of noise in the input's format."""
    return _random_batch


def _tiny_config(objective: str = "groupvit") -> ml_collections.ConfigDict:
    config = cocu.get_config()
    config.objective = objective
    config.data.image_size = 32
    config.data.augment = "crop"
    config.data.concepts = "none" if objective == "clip" else "caption"
    config.data.caption_length = 24
    config.data.prompt_length = 24
    config.data.corpora = ()
    text = dict(vocab_size=49408, context_length=24, width=8, heads=2, layers=1)
    if objective == "clip":
        fields = dict(vision_width=16, vision_layers=1, vision_heads=2)
    else:
        fields = dict(width=16, heads=2, depths=(1, 1, 0), groups=(4, 2), projection_hidden=16)
    config.model = ml_collections.ConfigDict(
        dict(image_size=32, patch_size=8, projection_dim=8, text=text, **fields)
    )
    config.batch_size = config.reference_batch = 16
    config.total_steps = 6
    config.warmup_steps = 2
    config.log_every = 2
    config.checkpoint_every = 2
    config.evaluation = None
    config.compile_cache = ""
    config.export = False
    return config


@pytest.fixture(scope="session")
def scenes_config(scenes, tmp_path_factory) -> ml_collections.ConfigDict:
    """A run that compiles fast, a tiny CLIP on the scenes; equal programs compile once."""
    config = _tiny_config("clip")
    config.data.corpora = (
        ml_collections.ConfigDict(dict(directory=scenes, split="clip", annotations="")),
    )
    config.compile_cache = str(tmp_path_factory.mktemp("compiled"))
    return config


@pytest.fixture(scope="session")
def recipe_config(scenes, tmp_path_factory) -> ml_collections.ConfigDict:
    """The recipe with everything in it that it has at its published size, but small.

    Two corpora with annotations, RandAugment, erasing, prompts, Gumbel noise, drop-path, batch
    normalisation, bfloat16, an average of the parameters, evaluation.
    """
    root = tmp_path_factory.mktemp("recipe")
    config = _tiny_config()
    corpora = []
    for name, lengths in (("one", (20, 13)), ("two", (31,))):
        images = [encode(picture(i, 40, 48)) for i in range(sum(lengths))]
        directory = write_corpus(root, lengths, name, images)
        annotations = write_annotations(root / f"{name}_curated", directory, name=name)
        fields = dict(directory=directory, split="train", annotations=annotations)
        corpora.append(ml_collections.ConfigDict(fields))
    config.data.corpora = tuple(corpora)
    config.data.concepts, config.data.augment = "cluster", "full"
    config.model.dtype, config.model.drop_path = "bfloat16", 0.3
    config.model.depths = (1, 1, 0)
    config.ema_decay = 0.9
    config.evaluation = dict(
        directory=scenes, split="selection", limit=0, pictures=1,
        crop=32, stride=32, resize_long_short=(32, 32),
    )  # fmt: skip
    config.eval_every = 0
    config.compile_cache = str(root / "compiled")
    return config


def _random_batch(config, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows, side, data = config.batch_size, config.data.image_size, config.data

    def tokens(*shape):
        return np.sort(generator.integers(1, 49407, shape)).astype(np.int32)

    return {
        "image": generator.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "caption": tokens(rows, data.caption_length),
        "prompts": tokens(rows, data.prompts, data.prompt_length),
        "noise": generator.integers(0, 2**32, (rows, 2), dtype=np.uint32),
    }


@pytest.fixture(scope="session")
def pair() -> Objective:
    """An objective that compiles in a second: `Pair` under GroupViT's loss."""
    return Objective(None, Pair, _pair_features, groupvit_loss)


class Pair(nnx.Module):
    """Linear towers with noise before GroupViT's projectors and losses."""

    def __init__(self, rngs: nnx.Rngs):
        self.image, self.text = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)
        self.image_projector = Projector(5, 16, 3, dtype="float32", rngs=rngs)
        self.text_projector = Projector(5, 16, 3, dtype="float32", rngs=rngs)
        self.log_scale = nnx.Param(jnp.array(1.0))
        self.multi_label_log_scale = nnx.Param(jnp.array(2.0))


def _pair_features(model, batch):
    image = model.image(batch["image"])
    keys = example_keys(batch)
    image = image * jax.vmap(lambda key: jax.random.normal(key, image.shape[1:]))(keys)
    return Features(image, model.text(batch["texts"])), {"noise": jnp.abs(image).mean()}
