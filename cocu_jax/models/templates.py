"""Prompt templates of zero-shot CLIP, and their tokens before and after the concept.

Tokens can be concatenated, tokens(prefix) + tokens(concept) + tokens(suffix) == tokens(prompt),
because no word of the tokenizer crosses a boundary. Every prefix ends with a space. A suffix starts
with a space or a full stop; a full stop could only be joined to punctuation, and `concept_pieces`
removes punctuation from the end of a concept.
"""

import unicodedata
from collections.abc import Iterable

from cocu_jax.errors import UserError
from cocu_jax.models.tokenizer import Tokenizer, clean

SIMPLE_TEMPLATE = "a photo of a {}."

# The best subset of seven found by Radford et al. (github.com/openai/CLIP, notebooks).
SUBSET_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

# GroupViT's published evaluation uses a different second template.
GROUPVIT_SUBSET_TEMPLATES = (
    SUBSET_TEMPLATES[0],
    "a bad photo of a {}.",
    *SUBSET_TEMPLATES[2:],
)

# The 80 templates of Radford et al. (2021) for ImageNet.
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)


def template_pieces(
    tokenizer: Tokenizer, templates: Iterable[str] = IMAGENET_TEMPLATES
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids before and after the concept, for every template.

    Raises:
        UserError: a template does not have exactly one place `{}` for the concept, or the place is
            not separated from other text.
    """
    prefixes, suffixes = [], []
    for template in templates:
        prefix, place, suffix = clean(template).partition("{}")
        separate = prefix[-1:] in ("", " ") and suffix[:1] in ("", " ", ".")
        if not (place and separate and "{}" not in suffix):
            raise UserError(
                f"template {template!r}: it must contain one {{}}, with a space before it and a "
                "space or a full stop after it"
            )
        prefixes.append(tokenizer.encode(prefix))
        suffixes.append(tokenizer.encode(suffix))
    return prefixes, suffixes


def concept_pieces(tokenizer: Tokenizer, concepts: Iterable[str]) -> list[list[int]]:
    """Token ids of concepts, to be placed between the tokens of `template_pieces`.

    Punctuation at the end of a concept is removed: "t.v." gives the prompt "a photo of a t.v.".
    There is one difference to CLIP: if a concept ends with a combining mark (as in Hindi or Thai),
    CLIP would join the full stop of a template to the mark, while it is a separate token here.

    Raises:
        UserError: a concept consists of punctuation only.
    """
    pieces = []
    for concept in concepts:
        text = clean(concept)
        while text and unicodedata.category(text[-1])[0] not in "LNM":
            text = text[:-1]
        if not text:
            raise UserError(
                f"concept {concept!r}: contains no letter or digit; remove it from the gallery"
            )
        pieces.append(tokenizer.encode(text))
    return pieces
