"""The GroupViT baseline: as `configs/cocu.py`, with prompts from the image's own caption.

Prompts hold the caption's gallery concepts. GroupViT took all its nouns, and so does
`--config.data.concepts=nouns` with corpora of `python -m data_prep image_text … --nouns`.
"""

import ml_collections

from configs import cocu


def get_config(variant: str = "cc3m") -> ml_collections.ConfigDict:
    """The published recipe of GroupViT; needs no annotations. Variants as in `configs/cocu.py`."""
    config = cocu.get_config(variant)
    config.data.concepts = "caption"
    for corpus in config.data.corpora:
        corpus.annotations = ""
    return config
