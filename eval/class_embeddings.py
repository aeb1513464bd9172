"""Text embeddings of class names: prompt templates, mean over prompts, normalisation."""

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

_PROMPTS_PER_CALL = 256


class ClassEmbeddings(NamedTuple):
    """The classes as arrays, so that other class names can use the same compiled program.

    Attributes:
        vectors: unit-norm embeddings; a class may have several.
        class_ids: class of every embedding; -1 marks padding, which is never predicted.
        threshold: background is predicted where the best class scores less; 0 without a background
            class.
    """

    vectors: Float[Array, "w p"]
    class_ids: Int[Array, "w"]
    threshold: Float[Array, ""]

    def padded(self, multiple: int) -> "ClassEmbeddings":
        """Pads to a multiple, so that different numbers of classes can use the same program.

        Do not use it with `Protocol.softmax`, which includes all classes.
        """
        missing = -len(self.class_ids) % multiple
        return self._replace(
            vectors=np.pad(self.vectors, ((0, missing), (0, 0))),
            class_ids=np.pad(self.class_ids, (0, missing), constant_values=-1),
        )


def words_of(name: str) -> tuple[str, ...]:
    """The synonyms in a class name: `person, human, man` has three words, `person` has one."""
    return tuple(word for part in name.split(",") if (word := part.strip())) or (name,)


def embed_classes(
    model: nnx.Module,
    classes: tuple[str, ...],
    template_set: str,
    tokenizer: Tokenizer,
    unit_prompts: bool = False,
) -> Float[np.ndarray, "c p"]:
    """Unit-norm embedding of each class: the normalised mean of the features of its prompts.

    A class with several words (`words_of`) has the prompts of all its words.

    Args:
        model: a GroupViT or a CLIP.
        classes: class names without the background.
        template_set: one of `protocol.TEMPLATE_SETS`.
        tokenizer: the tokenizer.
        unit_prompts: normalise the feature of every prompt before the mean, as in CLIP's
            evaluation; GroupViT's evaluation does not.
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
    batch_size = min(len(prompts), _PROMPTS_PER_CALL)
    batches = math.ceil(len(prompts) / batch_size)
    tokens = np.pad(tokens, ((0, batches * batch_size - len(prompts)), (0, 0)), mode="edge")
    graphdef, state = nnx.split(model)
    features = [
        np.asarray(_encode(state, batch, graphdef=graphdef)) for batch in np.split(tokens, batches)
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
