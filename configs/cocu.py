"""CoCu pre-training as published: `--config=configs/cocu.py:cc3m` or `:cc3m_cc12m_yfcc14m`.

The location of the prepared data is `data_root`, e.g. `--config.data_root=gs://bucket/tfds`. Every
field can be set on the command line, e.g. `--config.batch_size=512`. `:custom` trains on a corpus
of your own, `data_root/image_text/custom`, annotated in `data_root/annotations/custom`.

`:cc3m,base` and `:cc3m,large` train image towers of the size of ViT-B and ViT-L. They have not been
published or tried: the other settings are those of the small model.
"""

import ml_collections

# Corpora of each variant and the global batch it was published with.
VARIANTS = {
    "cc3m": (("cc3m",), 1024),
    "cc3m_cc12m_yfcc14m": (("cc3m", "cc12m", "yfcc14m"), 4096),
    "custom": (("custom",), 1024),  # a corpus of one's own
}

# Image tower (width, heads, depths) and text tower (width, heads); "small" is the published one.
SIZES = {
    "small": ((384, 6, (6, 3, 3)), (256, 4)),
    "base": ((768, 12, (6, 3, 3)), (512, 8)),
    "large": ((1024, 16, (12, 6, 6)), (768, 12)),
}


def get_config(variant: str = "cc3m") -> ml_collections.ConfigDict:
    """The published recipe (CoCu, arXiv 2309.13505; GroupViT, arXiv 2202.11094).

    Args:
        variant: corpora and, after a comma, the size of the model.
    """
    corpora, _, size = variant.partition(",")
    size = size or "small"
    for name, choices in ((corpora, VARIANTS), (size, SIZES)):
        if name not in choices:
            raise ValueError(f"no variant {name!r}; choose one of {', '.join(choices)}")
    names, batch_size = VARIANTS[corpora]
    (width, heads, depths), (text_width, text_heads) = SIZES[size]
    config = ml_collections.ConfigDict()
    config.job = "train"
    config.objective = "groupvit"  # "clip" is configs/clip.py
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
                weight=0.0,  # relative share; 0: the number of examples
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
    data.lanes = 768  # virtual readers; the number of processes must divide them
    data.window = 64  # records of a lane that are taken in turn

    config.model = model = ml_collections.ConfigDict()  # fields of GroupViTConfig, or CLIPConfig
    model.image_size = data.get_ref("image_size")
    model.patch_size = 16
    model.width = width
    model.heads = heads
    model.mlp_ratio = 4.0
    model.depths = depths
    model.groups = (64, 8)
    model.drop_path = 0.1
    model.projection_hidden = 4096
    model.projection_dim = 256
    model.layer_norm_eps = 1e-5
    model.loss = "softmax"  # or "sigmoid", SigLIP's, for both losses
    model.dtype = "bfloat16"
    model.remat = False
    model.fused_attention = False
    model.dense_init_std = 0.02
    model.assign_init_std = 0.02
    model.assign_logit_scale = 1.0
    model.group_token_init_std = 0.02
    model.text = text = ml_collections.ConfigDict()  # fields of TextConfig
    text.vocab_size = 49408
    text.context_length = 77
    text.width = text_width
    text.heads = text_heads
    text.layers = 12
    text.mlp_ratio = 4.0
    text.activation = "quick_gelu"
    text.layer_norm_eps = 1e-5

    # Weights to begin with: a training run, RUN@STEP, a Hugging Face folder or hub id, or an
    # authors' .pth; "" for random ones. All must fit, unless init_partial takes what does.
    config.init_from = ""
    config.init_partial = False

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
    config.betas = (0.9, 0.999)  # AdamW's
    config.adam_eps = 1e-8
    config.clip_norm = 5.0
    config.ema_decay = 0.0  # of an average of the parameters, evaluated and exported; 0: none
    config.accumulate = 1  # parts in which the towers see a batch; the loss is exact
    config.nonfinite_limit = 20  # steps in a row without a finite loss and gradient

    # On TPUs: recompute activations and fuse attention as suits the chip, whatever `model` says.
    config.tuned = True
    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # all devices that are left
    mesh.fsdp = 1
    mesh.split_update = False  # each device updates its part of the parameters, inside a slice

    config.log_every = 50
    config.checkpoint_every = 1000
    config.checkpoint_minutes = 20.0
    config.keep = 3  # newest checkpoints; the best by mIoU is kept as well
    config.eval_every = 2500  # 0: only at the end
    # None switches it off; a tuple of several is evaluated one after the other, each at its time.
    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.directory = root + "/segmentation/voc"
    evaluation.split = "validation"
    evaluation.every = 0  # 0: config.eval_every
    evaluation.limit = 0  # only the first so many images; 0: all
    evaluation.pictures = 8  # drawn into TensorBoard with truth, prediction and groups
    evaluation.name = ""  # of the figures of all but the first; empty: the directory's
    evaluation.mode = "slide"  # this and the rest: fields of eval's Protocol
    evaluation.crop = 448
    evaluation.stride = 224
    evaluation.resize_long_short = (2048, 448)  # () leaves images as they are
    evaluation.large_images = ()  # (pixels, long side): smaller first where there are more
    evaluation.has_background = True
    evaluation.bg_thresh = 0.95  # only where the dataset has a background class
    evaluation.templates = "simple"
    evaluation.softmax = False
    evaluation.image_classes = 5
    evaluation.dense = "naclip"  # this and the rest only where a CLIP is evaluated
    evaluation.logit_scale = 40.0
    evaluation.pamr = False
    evaluation.pamr_dilations = (1, 2, 4, 8, 12, 24)

    config.profile_at = 0  # step at which a profile begins; 0: never
    config.profile_steps = 5
    config.compile_cache = "~/.cache/cocu_jax"
    config.deterministic = False  # the same bits on GPUs, too; costs speed there, nothing elsewhere
    config.export = True  # writes workdir/export, a Hugging Face folder
    return config
