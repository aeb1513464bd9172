"""Makes the texts of examples: parses raw records, chooses concepts, assembles tokens."""

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from jaxtyping import Int, UInt64

from cocu_jax.input import concepts as sampling
from cocu_jax.input.config import InputConfig
from cocu_jax.input.draws import example_streams, mix, uniforms
from cocu_jax.input.prompts import PromptTable, noun_pieces, prompt_table, token_sequences
from cocu_jax.input.sources import CAPTION_FEATURES, Source

_TEMPLATE_DRAW, _NOISE_DRAW, _OWN_CAPTION_DRAW = 1, 3, 4


class UndecodedExamples(NamedTuple):
    """Examples that are complete except for their images, which are still encoded.

    Attributes:
        encoded: image files [b].
        stream: uint64 [b], each example's own source of random numbers in this epoch.
        fields: `key` string [b], `caption` int32 [b, t], `noise` uint32 [b, 2] and, if the config
            asks for prompts, `prompts` int32 [b, k, t2].
    """

    encoded: tf.Tensor
    stream: UInt64[tf.Tensor, "b"]
    fields: dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class TextBuilder:
    """Parses raw records and builds their captions and prompts: maps them to `UndecodedExamples`.

    Attributes:
        config: settings of a batch.
        seed: seed of all draws.
        table: tokens of the galleries of all sources, concatenated; None without prompts.
        first_concept: index in the table of the first concept of each source's gallery.
    """

    config: InputConfig
    seed: int
    table: PromptTable | None
    first_concept: Int[np.ndarray, "sources"]

    def __call__(
        self,
        source: Int[tf.Tensor, "b"],
        epoch: Int[tf.Tensor, "b"],
        record: tf.Tensor,
        annotation: tf.Tensor,
    ) -> UndecodedExamples:
        """Parses serialized examples [b] and their annotations [b] (empty if there are none)."""
        parsed = self._parse(record)
        stream = example_streams(self.seed, epoch, parsed["key"])
        caption = _draw_caption(stream, parsed["caption_tokens"], parsed["caption_lengths"])
        caption = tf.cast(caption, tf.int32)[:, 1:-1]
        fields = {
            "key": parsed["key"],
            "caption": token_sequences(caption, self.config.caption_length),
            "noise": tf.bitcast(mix(stream, _NOISE_DRAW), tf.uint32),
        }
        if self.table is not None:
            concepts, chosen = self._choose(stream, source, parsed, annotation)
            template = uniforms(stream, _TEMPLATE_DRAW, self.config.prompts)
            fields["prompts"] = self.table.tokens(concepts, chosen, template)
        return UndecodedExamples(parsed["image"], stream, fields)

    def _parse(self, record):
        spec = {
            "key": tf.io.FixedLenFeature([], tf.string),
            "image": tf.io.FixedLenFeature([], tf.string),
            "caption_tokens": tf.io.RaggedFeature(tf.int64),
            "caption_lengths": tf.io.RaggedFeature(tf.int64),  # absent in older datasets
        }
        if self.config.concepts in CAPTION_FEATURES:
            spec[CAPTION_FEATURES[self.config.concepts]] = tf.io.RaggedFeature(tf.int64)
        return tf.io.parse_example(record, spec)

    def _choose(self, stream, source, parsed, annotation):
        """Tokens of the available concepts [n, (t)], and the index of each prompt's [b, k]."""
        count = self.config.prompts
        if self.config.concepts == "nouns":
            caption = tf.cast(parsed["caption_tokens"], tf.int32)
            nouns, own = noun_pieces(caption, parsed[CAPTION_FEATURES["nouns"]])
            return nouns, sampling.sample_caption(stream, own, count)
        if self.config.concepts == "caption":
            found = parsed[CAPTION_FEATURES["caption"]]
            chosen = sampling.sample_caption(stream, found, count)
        else:
            chosen = self._choose_annotated(stream, parsed, annotation)
        offset = tf.gather(self.first_concept, source)[:, None]
        return self.table.concepts, tf.where(chosen == sampling.CAPTION, chosen, chosen + offset)

    def _choose_annotated(self, stream, parsed, annotation):
        """Concepts of the prompts [b, k]: ids in the gallery of the example's source."""
        count = self.config.prompts
        spec = {
            "key": tf.io.FixedLenFeature([], tf.string),
            "concepts": tf.io.RaggedFeature(tf.int64),
            "scores": tf.io.RaggedFeature(tf.float32),
            "clusters": tf.io.RaggedFeature(tf.int64),
        }
        ranked = tf.io.parse_example(annotation, spec)
        joined = tf.debugging.assert_equal(
            ranked["key"],
            parsed["key"],
            "keys of annotations and images differ; curate the corpus again",
        )
        with tf.control_dependencies([joined]):
            if self.config.concepts == "top":
                return sampling.sample_top(ranked["concepts"], count)
            return sampling.sample_clusters(
                stream, ranked["concepts"], ranked["scores"], ranked["clusters"], count
            )


def _draw_caption(
    stream: UInt64[tf.Tensor, "b"], tokens: tf.RaggedTensor, lengths: tf.RaggedTensor
) -> tf.RaggedTensor:
    """Draws one caption of each image for this epoch, uniformly.

    Args:
        stream: one random stream per sample.
        tokens: tokens of all captions of an image, concatenated [b, (t)].
        lengths: number of tokens of each caption [b, (n)]; [b, (0)] if there is only one caption.

    Returns:
        Tokens of the drawn captions [b, (t)].
    """
    count = lengths.row_lengths()
    bounds = tf.pad(tf.cumsum(lengths.to_tensor(), axis=1), [[0, 0], [1, 1]])
    uniform = tf.cast(uniforms(stream, _OWN_CAPTION_DRAW, 1)[:, 0], tf.float64)
    drawn = tf.cast(uniform * tf.cast(count, tf.float64), tf.int64)
    start, end = (tf.gather(bounds, drawn + side, batch_dims=1) for side in (0, 1))
    end = tf.where(count > 0, end, tf.cast(tokens.row_lengths(), tf.int64))
    first = tf.cast(tokens.row_starts(), tf.int64)
    places = tf.ragged.range(first + start, first + end, row_splits_dtype=tokens.row_splits.dtype)
    return tf.gather(tokens.values, places)


def make_text_builder(config: InputConfig, sources: tuple[Source, ...], seed: int) -> TextBuilder:
    """A text builder for these sources; tokenises their galleries.

    Raises:
        UserError: a prompt is longer than `config.prompt_length`.
    """
    if config.concepts == "none":
        return TextBuilder(config, seed, None, np.zeros(len(sources), np.int64))
    galleries = list(dict.fromkeys(source.gallery for source in sources))
    starts = np.cumsum([0, *map(len, galleries)], dtype=np.int64)
    table = prompt_table(sum(galleries, ()), config.prompt_length)
    places = [galleries.index(source.gallery) for source in sources]
    return TextBuilder(config, seed, table, starts[places])
