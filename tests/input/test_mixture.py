"""Corpora are mixed in the asked proportions, at every place, and each keeps its own epochs."""

import collections

import numpy as np
import pytest
from miniature_corpus import write_annotations, write_corpus
from ml_collections import ConfigDict

from cocu_jax.errors import UserError
from cocu_jax.input.pipeline import train_batches

BATCH, STEPS, LANES = 32, 30, 8


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    entries = []
    for name, lengths in (("big", (40, 32)), ("small", (24,))):
        root = tmp_path_factory.mktemp(name)
        directory = write_corpus(root, lengths, name)
        annotations = write_annotations(root, directory, name=name)
        entries.append(dict(directory=directory, split="train", annotations=annotations))
    return entries


def read(fields, corpora, weights, start=0, steps=STEPS):
    entries = [dict(entry) for entry in corpora]
    for entry, weight in zip(entries, weights, strict=True):
        if weight is not None:
            entry["weight"] = weight
    corpora = tuple(ConfigDict(entry) for entry in entries)
    data = ConfigDict(fields | dict(corpora=corpora, image_size=4, augment="none"))
    batches = train_batches(data, BATCH, seed=0, start_step=start, with_keys=True)
    return [[key.decode() for key in next(batches)["key"]] for _ in range(steps)]


@pytest.fixture(scope="module")
def by_size(data_fields, corpora):
    return read(data_fields, corpora, (None, None))


def composition(batches):
    return np.array([sum(key.startswith("big") for key in batch) for batch in batches])


def test_every_batch_has_nearly_the_proportions_of_the_sizes(by_size):
    big = composition(by_size)
    assert abs(big.sum() - 0.75 * BATCH * STEPS) <= LANES  # less than one example per lane
    assert np.abs(big - 0.75 * BATCH).max() <= LANES


def test_without_weights_examples_of_all_corpora_are_seen_equally_often(by_size):
    counts = collections.Counter(key for batch in by_size for key in batch)
    epochs = BATCH * STEPS // 96
    assert len(counts) == 96
    assert set(counts.values()) <= {epochs - 1, epochs, epochs + 1}  # lanes differ by one example


def test_given_weights_hold_and_a_mixture_goes_on_from_any_step(data_fields, corpora):
    straight = read(data_fields, corpora, (1.0, 4.0))
    assert abs(composition(straight).sum() - 0.2 * BATCH * STEPS) <= LANES
    assert read(data_fields, corpora, (1.0, 4.0), start=23, steps=2) == straight[23:25]


def test_a_negative_weight_is_refused(data_fields, corpora):
    with pytest.raises(UserError, match=r"corpora\[1\].weight=-1.0: it must be"):
        read(data_fields, corpora, (1.0, -1.0))
