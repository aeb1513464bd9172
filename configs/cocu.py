"""CoCu pre-training as published: `--config=configs/cocu.py:cc3m` or `:cc3m_cc12m_yfcc14m`.

Where the prepared data lies is yours to say, e.g. `--config.data_root=gs://bucket/tfds`. Every
field can be set on the command line, e.g. `--config.batch_size=512`.
"""

import ml_collections

# Corpora of each variant and the global batch it was published with.
VARIANTS = {
    "cc3m": (("cc3m",), 1024),
    "cc3m_cc12m_yfcc14m": (("cc3m", "cc12m", "yfcc14m"), 4096),
}


def get_config(variant: str = "cc3m") -> ml_collections.ConfigDict:
    """The published recipe (CoCu, arXiv 2309.13505; GroupViT, arXiv 2202.11094)."""
    names, batch_size = VARIANTS[variant]
    config = ml_collections.ConfigDict()
    config.job = "train"
    config.objective = "groupvit"  # or "clip"
    config.seed = 0

    config.data_root = "data"
    root = config.get_ref("data_root")
    config.data = data = ml_collections.ConfigDict()
    data.corpora = tuple(
        ml_collections.ConfigDict(
            dict(
                directory=root + f"/image_text/{name}",
                split="train",
                annotations=root + f"/annotations/{name}",  # --workdir of configs/curate.py
            )
        )
        for name in names
    )
    data.concepts = "cluster"  # or "top"; without annotations "caption", "nouns" or "none"
    data.prompts = 3
    data.prompt_length = 32
    data.caption_length = 77
    data.image_size = 224
    data.augment = "full"  # "crop" (crop and flip) or "none"
    data.crop_area = (0.08, 1.0)
    data.mean = (0.485, 0.456, 0.406)
    data.std = (0.229, 0.224, 0.225)

    config.model = model = ml_collections.ConfigDict()  # fields of GroupViTConfig, or CLIPConfig
    model.image_size = data.get_ref("image_size")
    model.patch_size = 16
    model.width = 384
    model.heads = 6
    model.mlp_ratio = 4.0
    model.depths = (6, 3, 3)
    model.groups = (64, 8)
    model.drop_path = 0.1
    model.projection_hidden = 4096
    model.projection_dim = 256
    model.dtype = "bfloat16"
    model.remat = False
    model.dense_init_std = 0.02
    model.assign_init_std = 0.02
    model.assign_logit_scale = 1.0
    model.group_token_init_std = 0.02
    model.text = text = ml_collections.ConfigDict()  # fields of TextConfig
    text.vocab_size = 49408
    text.context_length = 77
    text.width = 256
    text.heads = 4
    text.layers = 12
    text.mlp_ratio = 4.0

    # Rates are those of `reference_batch`; they are scaled by batch_size / reference_batch.
    config.batch_size = batch_size
    config.epochs = 30.0
    config.total_steps = 0  # overrides epochs
    config.reference_batch = 4096
    config.learning_rate = 1.6e-3
    config.start_learning_rate = 4e-6
    config.end_learning_rate = 4e-5
    config.warmup_epochs = 2.0
    config.warmup_steps = 0  # overrides warmup_epochs
    config.weight_decay = 0.05
    config.decay_temperatures = True  # the two log-temperatures decay, as published
    config.clip_norm = 5.0
    config.ema_decay = 0.0  # of an average of the parameters, evaluated and exported; 0: none
    config.accumulate = 1  # parts in which the towers see a batch; the loss is exact
    config.nonfinite_limit = 20  # steps in a row without a finite loss and gradient

    config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1))  # -1: all that are left

    config.log_every = 50
    config.checkpoint_every = 1000
    config.checkpoint_minutes = 20.0
    config.keep = 3  # newest checkpoints; the best by mIoU is kept as well
    config.eval_every = 2500
    config.evaluation = evaluation = ml_collections.ConfigDict()  # and fields of eval's Protocol
    evaluation.directory = root + "/segmentation/voc"
    evaluation.split = "validation"
    evaluation.limit = 0  # only the first so many images; 0: all
    evaluation.pictures = 8  # drawn into TensorBoard with truth, prediction and groups
    evaluation.has_background = True
    evaluation.bg_thresh = 0.95

    config.profile_at = 0  # step at which a profile begins; 0: never
    config.profile_steps = 5
    config.compile_cache = "~/.cache/cocu_jax"
    config.export = True  # writes workdir/export, a Hugging Face folder
    return config
