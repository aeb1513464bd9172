"""Prompts as tokens: template pieces and concept pieces joined in the graph, never re-tokenised."""

import dataclasses

import tensorflow as tf
from jaxtyping import Float, Int

from cocu_jax.errors import UserError
from cocu_jax.models.templates import IMAGENET_TEMPLATES, concept_pieces, template_pieces
from cocu_jax.models.tokenizer import EOT, SOT, Tokenizer

LONGEST_NOUN = 8  # tokens; corpora are prepared without longer ones, so that prompts have a bound


@dataclasses.dataclass(frozen=True)
class PromptTable:
    """Token pieces (without start and end) of every template and every concept of a gallery.

    Attributes:
        prefixes: int32 [templates, (n)].
        suffixes: the same after the concept.
        concepts: int32 [concepts, (n)]; none where prompts are made of the captions' nouns.
        length: positions of a prompt, start and end tokens included.
    """

    prefixes: tf.RaggedTensor
    suffixes: tf.RaggedTensor
    concepts: tf.RaggedTensor
    length: int

    def tokens(
        self,
        concepts: tf.RaggedTensor,
        chosen: Int[tf.Tensor, "b k"],
        uniform: Float[tf.Tensor, "b k"],
    ) -> Int[tf.Tensor, "b k length"]:
        """Zero-padded prompts, each in a template drawn uniformly; all zeros for the caption.

        Where the caption stands in for a prompt its text feature is known already, so its tokens
        are not given a second time.

        Args:
            concepts: int32 pieces [concepts, (n)]: the gallery's, or `noun_pieces`.
            chosen: rows of `concepts`; negative ones stand for the sample's own caption.
            uniform: a draw from [0, 1) for each template.
        """
        batch, count = tf.unstack(tf.shape(chosen))
        num_templates = self.prefixes.nrows(tf.int32)
        chosen = tf.reshape(tf.cast(chosen, tf.int32), [-1])
        template = tf.cast(tf.reshape(uniform, [-1]) * tf.cast(num_templates, tf.float32), tf.int32)
        pieces = tf.concat([concepts, _ragged([[]])], axis=0)  # the last one where none is chosen
        piece = tf.where(chosen < 0, concepts.nrows(tf.int32), chosen)
        text = tf.concat(
            [
                tf.gather(self.prefixes, template),
                tf.gather(pieces, piece),
                tf.gather(self.suffixes, template),
            ],
            axis=1,
        )
        rows = tf.where((chosen < 0)[:, None], 0, with_ends(text, self.length))
        return tf.reshape(rows, [batch, count, self.length])


def with_ends(text: tf.RaggedTensor, length: int) -> Int[tf.Tensor, "n length"]:
    """Start token, text cut to fit, end token, zeros.

    Args:
        text: int32 ids [n, (t)] without start and end tokens.
        length: positions of a row of the result.
    """
    edge = tf.ones([text.nrows(), 1], tf.int32)
    rows = tf.concat([edge * SOT, text[:, : length - 2], edge * EOT], axis=1)
    return rows.to_tensor(shape=[None, length])


def noun_pieces(
    captions: tf.RaggedTensor, spans: tf.RaggedTensor
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Tokens of the nouns of a batch, one sample's after the other's.

    Args:
        captions: int32 caption tokens [b, (t)], start and end tokens included.
        spans: int64 nouns as start, length, start, length … in the caption [b, (2 n)].

    Returns:
        Pieces int32 [nouns, (t)], and every sample's rows of them int64 [b, (n)].
    """
    start, length = tf.unstack(tf.reshape(spans.values, [-1, 2]), axis=1)
    counts = spans.row_lengths() // 2
    start += tf.cast(tf.repeat(captions.row_starts(), counts), tf.int64)
    places = tf.ragged.range(start, start + length, row_splits_dtype=captions.row_splits.dtype)
    rows = tf.RaggedTensor.from_row_lengths(tf.range(tf.size(start, tf.int64)), counts)
    return tf.gather(captions.values, places), rows


def prompt_table(gallery: tuple[str, ...], length: int) -> PromptTable:
    """Tokenises a gallery, perhaps an empty one, and CLIP's 80 ImageNet templates.

    Raises:
        UserError: some prompt would be longer than `length`.
    """
    tokenizer = Tokenizer()
    prefixes, suffixes = template_pieces(tokenizer, IMAGENET_TEMPLATES)
    concepts = concept_pieces(tokenizer, gallery)
    template = max(
        len(before) + len(after) for before, after in zip(prefixes, suffixes, strict=True)
    )
    lengths = dict(zip(map(repr, gallery), map(len, concepts), strict=True))
    lengths = lengths or {f"nouns of {LONGEST_NOUN} tokens": LONGEST_NOUN}
    longest = max(lengths, key=lengths.get)
    needed = template + lengths[longest] + 2
    if needed > length:
        raise UserError(
            f"data.prompt_length={length} cuts prompts for {longest}; use at least {needed}"
        )
    return PromptTable(
        prefixes=_ragged(prefixes),
        suffixes=_ragged(suffixes),
        concepts=_ragged(concepts),
        length=length,
    )


def _ragged(rows):
    return tf.ragged.constant(rows, dtype=tf.int32, ragged_rank=1, row_splits_dtype=tf.int32)
