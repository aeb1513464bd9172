"""Class names -> text embeddings: prompts of every template, averaged, normalised."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cocu_jax.models.losses import normalize
from cocu_jax.models.templates import (
    GROUPVIT_SUBSET_TEMPLATES,
    IMAGENET_TEMPLATES,
    SIMPLE_TEMPLATE,
    SUBSET_TEMPLATES,
)
from cocu_jax.models.text import trim_tokens
from cocu_jax.models.tokenizer import Tokenizer

_TEXTS_PER_CALL = 256


class ClassEmbeddings(NamedTuple):
    """What methods need to know about the classes, as arrays: other classes share a program.

    Attributes:
        vectors: unit-norm embeddings; a class may have several.
        owners: class of every embedding; -1 marks padding, which no pixel is assigned to.
        threshold: background wins where the best class scores less; 0 without a background class.
    """

    vectors: Float[Array, "w p"]
    owners: Int[Array, "w"]
    threshold: Float[Array, ""]

    def padded(self, multiple: int) -> "ClassEmbeddings":
        """The same with padding up to a multiple: numbers of classes share a program.

        Not for `Protocol.softmax`, which counts all classes.
        """
        missing = -len(self.owners) % multiple
        return self._replace(
            vectors=np.pad(self.vectors, ((0, missing), (0, 0))),
            owners=np.pad(self.owners, (0, missing), constant_values=-1),
        )


def words_of(name: str) -> tuple[str, ...]:
    """The words that mean a class: `person, human, man` are three, a plain name is one."""
    return tuple(word for part in name.split(",") if (word := part.strip())) or (name,)


def embed_classes(
    model: nnx.Module,
    classes: tuple[str, ...],
    template_set: str,
    tokenizer: Tokenizer,
    unit_prompts: bool = False,
) -> Float[np.ndarray, "c p"]:
    """Unit-norm embedding of each class: the mean of its prompts' projected features, normalised.

    The prompts of a class with several words (`words_of`) are those of all its words.

    Args:
        model: a GroupViT or CLIP.
        classes: names, background not among them.
        template_set: one of `protocol.TEMPLATE_SETS`.
        tokenizer: the tokenizer.
        unit_prompts: normalise every prompt's feature before the mean, as CLIP's evaluation does;
            GroupViT's does not.
    """
    templates = {
        "simple": (SIMPLE_TEMPLATE,),
        "subset": SUBSET_TEMPLATES,
        "subset_groupvit": GROUPVIT_SUBSET_TEMPLATES,
        "full": IMAGENET_TEMPLATES,
    }[template_set]
    words = [words_of(name) for name in classes]
    prompts = [t.format(word) for own in words for word in own for t in templates]
    tokens = trim_tokens(tokenizer(prompts))
    rows = min(len(prompts), _TEXTS_PER_CALL)
    blocks = math.ceil(len(prompts) / rows)
    tokens = np.pad(tokens, ((0, blocks * rows - len(prompts)), (0, 0)), mode="edge")
    graphdef, state = nnx.split(model)
    features = [
        np.asarray(_encode(state, block, graphdef=graphdef)) for block in np.split(tokens, blocks)
    ]
    features = np.concatenate(features)[: len(prompts)]
    if unit_prompts:
        features = np.asarray(normalize(jnp.asarray(features)))
    ends = np.cumsum([len(own) * len(templates) for own in words])
    means = [part.mean(0) for part in np.split(features, ends[:-1])]
    return np.asarray(normalize(jnp.asarray(np.stack(means))))


@functools.partial(jax.jit, static_argnames="graphdef")
def _encode(
    state: nnx.State, tokens: Int[Array, "n t"], *, graphdef: nnx.GraphDef
) -> Float[Array, "n p"]:
    return nnx.merge(graphdef, state).encode_text(tokens)
