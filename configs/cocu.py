"""CoCu pre-training as published: `--config=configs/cocu.py:cc3m` or `:cc3m_cc12m_yfcc14m`.

`data_root` is the directory of the prepared data, e.g. `--config.data_root=gs://bucket/tfds`. Every
field can be set on the command line, e.g. `--config.batch_size=512`. `:custom` trains on your own
corpus, `data_root/image_text/custom`, with the annotations `data_root/annotations/custom`.

`:cc3m,base` and `:cc3m,large` have image towers of the size of ViT-B and ViT-L. These models have
been neither published nor trained; their other settings are those of the small model.
"""

import ml_collections

from cocu_jax.imagenet_statistics import IMAGENET_MEAN, IMAGENET_STD
from cocu_jax.models.tokenizer import CONTEXT_LENGTH

# Corpora of each variant, and the batch size that it was published with.
VARIANTS = {
    "cc3m": (("cc3m",), 1024),
    "cc3m_cc12m_yfcc14m": (("cc3m", "cc12m", "yfcc14m"), 4096),
    "custom": (("custom",), 1024),  # your own corpus
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
        variant: name of the corpora and, after a comma, the size of the model.
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
    config.objective = "groupvit"  # for "clip" see configs/clip.py
    config.seed = 0

    config.data_root = "data"
    root = config.get_ref("data_root")
    config.data = data = ml_collections.ConfigDict()
    data.corpora = tuple(
        ml_collections.ConfigDict(
            dict(
                directory=root + f"/image_text/{name}",
                split="train",
                annotations=root + f"/annotations/{name}",  # the --workdir of curation
                weight=0.0,  # relative share in a batch; 0: the number of examples
            )
        )
        for name in names
    )
    data.concepts = "cluster"  # or "top"; without annotations "caption", "nouns" or "none"
    data.prompts = 3
    data.prompt_length = 32
    data.caption_length = CONTEXT_LENGTH  # 77, CLIP's
    data.image_size = 224
    data.augment = "full"  # "crop" (crop and flip) or "none"
    data.crop_area = (0.08, 1.0)
    data.mean = IMAGENET_MEAN
    data.std = IMAGENET_STD
    data.lanes = 768  # virtual readers; the number of processes must divide it
    data.window = 64  # records of a lane that are shuffled together

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
    model.loss = "softmax"  # or "sigmoid", as in SigLIP; the form of both losses
    model.dtype = "bfloat16"
    model.remat = False
    model.fused_attention = False
    model.dense_init_std = 0.02
    model.assign_init_std = 0.02
    model.assign_logit_scale = 1.0
    model.group_token_init_std = 0.02
    model.text = text = ml_collections.ConfigDict()  # fields of TextConfig
    text.vocab_size = 49408
    text.context_length = CONTEXT_LENGTH
    text.width = text_width
    text.heads = text_heads
    text.layers = 12
    text.mlp_ratio = 4.0
    text.activation = "quick_gelu"
    text.layer_norm_eps = 1e-5

    # Initial weights: a training run, RUN@STEP, a Hugging Face folder or hub id, or an authors'
    # .pth; "": random. With init_partial, arrays that do not fit are left random.
    config.init_from = ""
    config.init_partial = False

    # Learning rates are given for `reference_batch` and scaled by batch_size / reference_batch.
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
    config.decay_temperatures = True  # weight decay for the two log-temperatures, as published
    config.betas = (0.9, 0.999)  # of AdamW
    config.adam_eps = 1e-8
    config.clip_norm = 5.0
    config.ema_decay = 0.0  # of averaged parameters, which are evaluated and exported; 0: none
    config.accumulate = 1  # number of parts in which the towers process a batch; exact
    config.nonfinite_limit = 20  # stop after so many skipped steps in a row

    # On TPUs, use the fastest program for the chip in place of model.remat and fused_attention.
    config.tuned = True
    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # number of devices / fsdp
    mesh.fsdp = 1  # splits parameters as well; see cocu_jax/training/mesh.py
    mesh.split_update = False  # each device updates a part of the parameters; one slice only

    config.log_every = 50
    config.checkpoint_every = 1000
    config.checkpoint_minutes = 20.0
    config.keep = 3  # number of newest checkpoints; the best by mIoU is kept as well
    config.eval_every = 2500  # 0: only at the end
    # None: no evaluation. A tuple of several such entries evaluates several benchmarks.
    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.directory = root + "/segmentation/voc"
    evaluation.split = "validation"
    evaluation.every = 0  # 0: config.eval_every
    evaluation.limit = 0  # number of images, the first of the split; 0: all
    evaluation.pictures = 8  # images shown in TensorBoard with ground truth, prediction and groups
    evaluation.name = ""  # part of the figures' names from the second entry on; "": the directory's
    evaluation.mode = "slide"  # this and all following: fields of eval/protocol.py
    evaluation.crop = 448
    evaluation.stride = 224
    evaluation.resize_long_short = (2048, 448)  # (): original size
    evaluation.large_images = ()  # (pixels, long side): images of more pixels are resized first
    evaluation.has_background = True
    evaluation.bg_thresh = 0.95  # only used with a background class
    evaluation.templates = "simple"
    evaluation.softmax = False
    evaluation.image_classes = 5
    evaluation.dense = "naclip"  # this and all following: only used for a CLIP
    evaluation.logit_scale = 40.0
    evaluation.pamr = False
    evaluation.pamr_dilations = (1, 2, 4, 8, 12, 24)

    config.profile_at = 0  # first step of a profile; 0: no profile
    config.profile_steps = 5
    config.compile_cache = "~/.cache/cocu_jax"
    config.deterministic = False  # bit-identical results on GPUs, which become slower
    config.export = True  # write workdir/export, a Hugging Face folder
    return config
