"""Prompts put together from pieces are what the tokenizer makes of the whole sentence."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from cocu_jax.errors import UserError
from cocu_jax.input.prompts import prompt_table, token_sequences
from cocu_jax.models.templates import IMAGENET_TEMPLATES
from cocu_jax.models.tokenizer import Tokenizer

GALLERY = ("cat", "fire engine", "o'clock news", "7-eleven", "rock 'n' roll", "t-shirts", "café")
LENGTH = 24


@pytest.fixture(scope="module")
def table():
    return prompt_table(GALLERY, LENGTH)


def captions(*texts):
    tokenizer = Tokenizer()
    return tf.ragged.constant(
        [tokenizer.encode(t) for t in texts], tf.int32, row_splits_dtype=tf.int32
    )


def test_every_template_with_every_concept_equals_the_tokenizer(table):
    templates = len(IMAGENET_TEMPLATES)
    concepts = tf.constant([[c] * templates for c in range(len(GALLERY))])
    uniform = tf.constant([(np.arange(templates) + 0.5) / templates] * len(GALLERY), tf.float32)
    got = table.tokens(table.concepts, concepts, uniform).numpy()
    tokenizer = Tokenizer()
    for concept, rows in zip(GALLERY, got, strict=True):
        want = tokenizer([t.format(concept) for t in IMAGENET_TEMPLATES], context_length=LENGTH)
        np.testing.assert_array_equal(rows, want)


def test_captions_are_cut_with_their_end_kept():
    texts = ("a dog on a sofa", " ".join(["long"] * 40))
    want = Tokenizer()(list(texts), context_length=LENGTH)
    np.testing.assert_array_equal(token_sequences(captions(*texts), LENGTH), want)


def test_where_the_caption_stands_in_the_prompt_is_zero(table):
    chosen = tf.constant([[0, -1], [-1, 1]])
    got = table.tokens(table.concepts, chosen, tf.zeros([2, 2])).numpy()
    want = Tokenizer()([IMAGENET_TEMPLATES[0].format(c) for c in GALLERY[:2]], LENGTH)
    np.testing.assert_array_equal(got, [[want[0], 0 * want[0]], [0 * want[0], want[1]]])
    none = tf.ragged.constant([], tf.int32, ragged_rank=1, row_splits_dtype=tf.int32)
    assert not table.tokens(none, -tf.ones_like(chosen), tf.zeros([2, 2])).numpy().any()


def test_templates_are_drawn_uniformly(table):
    uniform = np.random.default_rng(0).random((4000, 2), np.float32)
    chosen = tf.zeros([4000, 2], tf.int32)
    got = table.tokens(table.concepts, chosen, tf.constant(uniform))
    _, counts = np.unique(got.numpy().reshape(8000, LENGTH), axis=0, return_counts=True)
    assert len(counts) == len(set(IMAGENET_TEMPLATES))
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_prompt_length_that_cuts_prompts_is_refused():
    with pytest.raises(UserError, match="use at least"):
        prompt_table(GALLERY, 8)
    with pytest.raises(UserError, match="nouns of 8 tokens do not fit; use at least 19"):
        prompt_table((), 18)
    assert prompt_table((), 19).concepts.shape[0] == 0
