"""Trains a CLIP on the corpora of `configs/cocu.py`, e.g. for curation: `--config=configs/clip.py`.

The image tower has the architecture of OpenAI's ViT-B/32. Data, batch size and optimisation are
those of `configs/cocu.py`, with captions only.
"""

import ml_collections

from configs import cocu


def get_config(variant: str = "cc3m") -> ml_collections.ConfigDict:
    """The corpora of a variant are those of `configs/cocu.py`; annotations are not needed."""
    if variant not in cocu.VARIANTS:
        raise ValueError(f"no variant {variant!r}; choose one of {', '.join(cocu.VARIANTS)}")
    config = cocu.get_config(variant)
    config.objective = "clip"
    config.data.concepts = "none"
    for corpus in config.data.corpora:
        corpus.annotations = ""
    config.eval_every = 0
    config.evaluation = None  # the exported model can be evaluated with configs/evaluate.py

    text = config.model.text
    config.model = model = ml_collections.ConfigDict()  # fields of CLIPConfig
    model.image_size = config.data.get_ref("image_size")
    model.patch_size = 32
    model.vision_width = 768
    model.vision_layers = 12
    model.vision_heads = 12
    model.vision_mlp_ratio = 4.0
    model.projection_dim = 512
    model.activation = "quick_gelu"
    model.layer_norm_eps = 1e-5
    model.loss = "softmax"
    model.dtype = "bfloat16"
    model.remat = False
    model.text = text
    text.width = 512
    text.heads = 8
    return config
