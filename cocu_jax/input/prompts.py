"""Makes prompts in the input graph: tokens of templates and of concepts are concatenated."""

import dataclasses

import tensorflow as tf
from jaxtyping import Float, Int

from cocu_jax.errors import UserError
from cocu_jax.models.templates import IMAGENET_TEMPLATES, concept_pieces, template_pieces
from cocu_jax.models.tokenizer import EOT, SOT, Tokenizer

LONGEST_NOUN = 8  # tokens; corpora contain no longer ones, so the length of prompts is bounded


@dataclasses.dataclass(frozen=True)
class PromptTable:
    """Tokens (without start and end) of every template and every concept of a gallery.

    Attributes:
        prefixes: tokens before the concept, int32 [templates, (n)].
        suffixes: tokens after the concept, int32 [templates, (n)].
        concepts: int32 [concepts, (n)]; empty if prompts are made of the captions' nouns.
        length: length of a prompt, start and end tokens and padding included.
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
        """Zero-padded prompts, each with a template that is drawn uniformly.

        A prompt that is replaced by the caption is all zeros: the caption's text feature is used
        for it, so its tokens are not encoded twice.

        Args:
            concepts: tokens int32 [concepts, (n)] of the gallery, or of `noun_pieces`.
            chosen: indices into `concepts`; negative ones stand for the sample's own caption.
            uniform: a draw from [0, 1) for each template.
        """
        batch, count = tf.unstack(tf.shape(chosen))
        num_templates = self.prefixes.nrows(tf.int32)
        chosen = tf.reshape(tf.cast(chosen, tf.int32), [-1])
        template = tf.cast(tf.reshape(uniform, [-1]) * tf.cast(num_templates, tf.float32), tf.int32)
        pieces = tf.concat([concepts, _ragged([[]])], axis=0)  # an empty one if none is chosen
        piece = tf.where(chosen < 0, concepts.nrows(tf.int32), chosen)
        text = tf.concat(
            [
                tf.gather(self.prefixes, template),
                tf.gather(pieces, piece),
                tf.gather(self.suffixes, template),
            ],
            axis=1,
        )
        prompts = tf.where((chosen < 0)[:, None], 0, token_sequences(text, self.length))
        return tf.reshape(prompts, [batch, count, self.length])


def token_sequences(text: tf.RaggedTensor, length: int) -> Int[tf.Tensor, "n length"]:
    """`Tokenizer.sequence` in the graph: start token, truncated text, end token, zero padding.

    Args:
        text: int32 ids [n, (t)] without start and end tokens.
        length: length of a sequence, padding included.
    """
    one = tf.ones([text.nrows(), 1], tf.int32)
    sequences = tf.concat([one * SOT, text[:, : length - 2], one * EOT], axis=1)
    return sequences.to_tensor(shape=[None, length])


def noun_pieces(
    captions: tf.RaggedTensor, spans: tf.RaggedTensor
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Tokens of the nouns of a batch, in the order of the samples.

    Args:
        captions: int32 caption tokens [b, (t)], start and end tokens included.
        spans: nouns as start, length, start, length … in the caption, int64 [b, (2 n)].

    Returns:
        Tokens of all nouns int32 [nouns, (t)], and the indices of each sample's nouns int64
        [b, (n)].
    """
    start, length = tf.unstack(tf.reshape(spans.values, [-1, 2]), axis=1)
    counts = spans.row_lengths() // 2
    start += tf.cast(tf.repeat(captions.row_starts(), counts), tf.int64)
    places = tf.ragged.range(start, start + length, row_splits_dtype=captions.row_splits.dtype)
    indices = tf.RaggedTensor.from_row_lengths(tf.range(tf.size(start, tf.int64)), counts)
    return tf.gather(captions.values, places), indices


def prompt_table(gallery: tuple[str, ...], length: int) -> PromptTable:
    """Tokenises a gallery, which may be empty, and CLIP's 80 ImageNet templates.

    Raises:
        UserError: a prompt would be longer than `length`.
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
            f"config.data.prompt_length={length}: prompts for {longest} do not fit; use at least "
            f"{needed}"
        )
    return PromptTable(
        prefixes=_ragged(prefixes),
        suffixes=_ragged(suffixes),
        concepts=_ragged(concepts),
        length=length,
    )


def _ragged(lists):
    return tf.ragged.constant(lists, dtype=tf.int32, ragged_rank=1, row_splits_dtype=tf.int32)
