"""Prompts as tokens: template pieces and concept pieces joined in the graph, never re-tokenised."""

import dataclasses

import tensorflow as tf
from jaxtyping import Float, Int

from cocu_jax.errors import UserError
from cocu_jax.models.templates import IMAGENET_TEMPLATES, concept_pieces, template_pieces
from cocu_jax.models.tokenizer import EOT, SOT, Tokenizer


@dataclasses.dataclass(frozen=True)
class PromptTable:
    """Token pieces (without start and end) of every template and every concept.

    Attributes:
        prefixes: int32 [templates + 1, (n)], the last one empty: a caption has no template.
        suffixes: the same after the concept.
        concepts: int32 [concepts, (n)].
        length: positions of a prompt, start and end tokens included.
    """

    prefixes: tf.RaggedTensor
    suffixes: tf.RaggedTensor
    concepts: tf.RaggedTensor
    length: int

    def tokens(
        self,
        concepts: Int[tf.Tensor, "b k"],
        captions: tf.RaggedTensor,
        uniform: Float[tf.Tensor, "b k"],
    ) -> Int[tf.Tensor, "b k length"]:
        """Zero-padded prompts, each in a template drawn uniformly.

        Args:
            concepts: ids; negative ones stand for the sample's own caption, which is cut to
                `length` with its end token kept.
            captions: int32 caption tokens [b, (t)] without start and end tokens.
            uniform: a draw from [0, 1) for each template.
        """
        batch, count = tf.unstack(tf.shape(concepts))
        num_templates = self.prefixes.nrows(tf.int32) - 1
        num_concepts = self.concepts.nrows(tf.int32)
        own = tf.repeat(tf.range(batch), count)
        chosen = tf.reshape(tf.cast(concepts, tf.int32), [-1])
        drawn = tf.cast(tf.reshape(uniform, [-1]) * tf.cast(num_templates, tf.float32), tf.int32)
        template = tf.where(chosen < 0, num_templates, drawn)
        pieces = tf.concat([self.concepts, captions], axis=0)
        text = tf.concat(
            [
                tf.gather(self.prefixes, template),
                tf.gather(pieces, tf.where(chosen < 0, num_concepts + own, chosen)),
                tf.gather(self.suffixes, template),
            ],
            axis=1,
        )
        return tf.reshape(with_ends(text, self.length), [batch, count, self.length])


def with_ends(text: tf.RaggedTensor, length: int) -> Int[tf.Tensor, "n length"]:
    """Start token, text cut to fit, end token, zeros.

    Args:
        text: int32 ids [n, (t)] without start and end tokens.
        length: positions of a row of the result.
    """
    edge = tf.ones([text.nrows(), 1], tf.int32)
    rows = tf.concat([edge * SOT, text[:, : length - 2], edge * EOT], axis=1)
    return rows.to_tensor(shape=[None, length])


def prompt_table(gallery: tuple[str, ...], length: int) -> PromptTable:
    """Tokenises a gallery and CLIP's 80 ImageNet templates.

    Raises:
        UserError: some prompt would be longer than `length`.
    """
    tokenizer = Tokenizer()
    prefixes, suffixes = template_pieces(tokenizer, IMAGENET_TEMPLATES)
    concepts = concept_pieces(tokenizer, gallery)
    template = max(
        len(before) + len(after) for before, after in zip(prefixes, suffixes, strict=True)
    )
    longest = max(range(len(concepts)), key=lambda index: len(concepts[index]))
    needed = template + len(concepts[longest]) + 2
    if needed > length:
        raise UserError(
            f"data.prompt_length={length} cuts prompts for {gallery[longest]!r}; "
            f"use at least {needed}"
        )
    return PromptTable(
        prefixes=_ragged([*prefixes, []]),
        suffixes=_ragged([*suffixes, []]),
        concepts=_ragged(concepts),
        length=length,
    )


def _ragged(rows):
    return tf.ragged.constant(rows, dtype=tf.int32, ragged_rank=1, row_splits_dtype=tf.int32)
