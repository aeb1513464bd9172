"""The GroupViT baseline: `configs/cocu.py` with prompts from the image's own caption.

Prompts are made of the caption's gallery concepts. To use all nouns of the caption, as GroupViT
did, set `--config.data.concepts=nouns` and prepare the corpora with `python -m data_prep image_text
… --nouns`.
"""

import ml_collections

from configs import cocu


def get_config(variant: str = "cc3m") -> ml_collections.ConfigDict:
    """The published recipe of GroupViT, without annotations; variants as in `configs/cocu.py`."""
    config = cocu.get_config(variant)
    config.data.concepts = "caption"
    for corpus in config.data.corpora:
        corpus.annotations = ""
    return config
