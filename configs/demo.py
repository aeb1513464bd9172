"""The whole method in minutes on a laptop: `main.py --config=configs/demo.py --workdir=runs/demo`.

Same modules, losses, samplers and evaluation rule as the published recipe. Only sizes differ, and
the initial scales that small models need: the last fields of `pretrain.model`, whose published
values are in `configs/cocu.py`.
"""

import ml_collections

from cocu_jax.models.tokenizer import CONTEXT_LENGTH
from configs import cocu, curate

IMAGE_SIZE = 64
PATCH_SIZE = 8
STATISTICS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def get_config() -> ml_collections.ConfigDict:
    """Settings of every stage."""
    config = ml_collections.ConfigDict()
    config.job = "demo"
    config.stages = (
        "all"  # or a comma list of scenes, clip, curate, caption, cocu, complete, report
    )
    config.seeds = 1  # repetitions of everything but the scenes
    config.scenes = _scenes()
    config.clip = _clip()
    config.curate = _curate()
    config.pretrain = _pretrain()
    return config


def _scenes() -> ml_collections.ConfigDict:
    scenes = ml_collections.ConfigDict()
    scenes.image_size = IMAGE_SIZE
    scenes.things_omitted = 0.1  # captions name the thing …
    scenes.stuff_omitted = 0.95  # … and hardly ever what is behind it
    scenes.clip_scenes = 8_000
    scenes.pretrain_scenes = 16_000
    scenes.selection_scenes = 500
    scenes.validation_scenes = 1_000
    return scenes


def _curate() -> ml_collections.ConfigDict:
    config = curate.get_config()
    # Only one caption in twenty names the background: 64 neighbours hold three of them on average.
    # The published value is 8.
    config.neighbours = 64
    config.page_images = 12
    return config


def _train() -> ml_collections.ConfigDict:
    """What CLIP and GroupViT have in common."""
    config = cocu.get_config()
    del config.data_root
    config.data.corpora = ()  # filled in by the demo, from its own corpus
    config.data.image_size = IMAGE_SIZE
    config.data.augment = "crop"
    config.data.crop_area = (0.5, 1.0)
    config.data.mean, config.data.std = STATISTICS
    config.data.window = 128
    config.data.caption_length = 32
    config.data.prompt_length = 32
    config.batch_size = config.reference_batch = 64
    config.epochs = 0.0
    config.warmup_epochs = 0.0
    config.start_learning_rate = 0.0
    config.end_learning_rate = 0.0
    config.ema_decay = 0.99
    config.log_every = 10
    config.checkpoint_every = 200
    config.keep = 1
    config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, split_update=False))
    return config


def _clip() -> ml_collections.ConfigDict:
    config = _train()
    config.objective = "clip"
    config.data.concepts = "none"
    config.total_steps = 800
    config.data.crop_area = (0.85, 1.0)  # captions name whole scenes
    config.learning_rate = 2e-3
    config.warmup_steps = 50
    config.eval_every = 0
    config.evaluation = None
    config.model = model = ml_collections.ConfigDict()
    model.image_size = IMAGE_SIZE
    model.patch_size = PATCH_SIZE
    model.vision_width = 64
    model.vision_layers = 2
    model.vision_heads = 2
    model.projection_dim = 64
    model.text = _text(layers=1)
    return config


def _pretrain() -> ml_collections.ConfigDict:
    config = _train()
    config.total_steps = 1_000
    config.learning_rate = 1e-3
    config.warmup_steps = 50
    config.eval_every = 500
    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.directory = ""  # filled in by the demo
    evaluation.split = "selection"
    evaluation.limit = 100  # shows progress; the table is measured on the validation split
    # Scenes are enlarged to twice the model's size and read in nine windows that overlap by half.
    evaluation.resize_long_short = (2 * IMAGE_SIZE, 2 * IMAGE_SIZE)
    evaluation.crop = IMAGE_SIZE
    evaluation.stride = IMAGE_SIZE // 2
    model = config.model
    model.image_size = IMAGE_SIZE
    model.patch_size = PATCH_SIZE
    model.width = 64
    model.heads = 2
    model.depths = (1, 1, 0)
    model.groups = (8, 8)
    model.drop_path = 0.0
    model.projection_hidden = 256
    model.projection_dim = 64
    model.dtype = "float32"
    model.text = _text(layers=1)
    # With the published scales the assignment logits of a model this small drown in Gumbel noise.
    model.dense_init_std = 0.1
    model.assign_init_std = 0.3
    model.assign_logit_scale = 6.0
    model.group_token_init_std = 0.3
    return config


def _text(layers: int) -> ml_collections.ConfigDict:
    text = ml_collections.ConfigDict()
    text.context_length = CONTEXT_LENGTH
    text.width = 64
    text.heads = 2
    text.layers = layers
    return text
