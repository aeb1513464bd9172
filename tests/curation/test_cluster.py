import math

import curation_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from cocu_jax.curation.cluster import cluster_archives, gram_matrix

WIDTH = 16


@pytest.fixture(scope="module")
def texts():
    """Text embeddings as CLIP's: a narrow cone with topics in it."""
    rng = np.random.default_rng(0)
    rows = 2 * rng.normal(size=64) + rng.normal(size=(40, 64))[rng.integers(40, size=400)]
    rows += 0.8 * rng.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def archives(texts):
    rng = np.random.default_rng(1)
    padded = np.full((1_000, WIDTH), -1, np.int32)
    for row in padded:
        size = rng.integers(1, WIDTH + 1)
        row[:size] = rng.choice(len(texts), size, replace=False)
    return padded


@pytest.fixture(scope="module")
def labels(texts, archives):
    return np.asarray(cluster_archives(archives, gram_matrix(texts), 0, np.arange(1_000)))


def mean_inertias(texts, archives, labels):
    """Of our clusters and of scikit-learn's, over the archives that have clusters."""
    ours, theirs = [], []
    for archive, found in zip(archives, labels, strict=True):
        points = texts[archive[archive >= 0]]
        if len(points) > 2:
            k = math.ceil(len(points) / 2)
            with threadpool_limits(1):  # tiny problems: threads would only wait for each other
                reference = KMeans(k, n_init=5, max_iter=100, random_state=0).fit(points)
            ours.append(oracle.inertia(points, found[: len(points)]))
            theirs.append(reference.inertia_)
    return np.mean(ours), np.mean(theirs)


def test_inertia_is_within_half_a_percent_of_scikit_learn(texts, archives, labels):
    ours, theirs = mean_inertias(texts, archives[:300], labels[:300])
    assert ours <= 1.005 * theirs


@pytest.mark.parametrize(
    "width", [pytest.param(32, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
def test_inertia_of_large_archives_is_within_half_a_percent_of_scikit_learn(texts, width):
    rng = np.random.default_rng(3)
    archives = np.full((200, width), -1, np.int32)
    for row in archives:
        size = rng.integers(width // 2 + 1, width + 1)
        row[:size] = rng.choice(len(texts), size, replace=False)
    labels = np.asarray(cluster_archives(archives, gram_matrix(texts), 0, np.arange(200)))
    ours, theirs = mean_inertias(texts, archives, labels)
    assert ours <= 1.005 * theirs


def test_every_archive_has_half_as_many_clusters_as_concepts(archives, labels):
    for archive, found in zip(archives, labels, strict=True):
        size = (archive >= 0).sum()
        used = found[:size]
        if size > 2:
            assert set(used.tolist()) == set(range(math.ceil(size / 2)))
            first_seen = list(dict.fromkeys(used.tolist()))
            assert first_seen == sorted(first_seen)
        else:
            assert (used == -1).all()
        assert (found[size:] == -1).all()


def test_labels_do_not_depend_on_the_batch(texts, archives, labels):
    gram = gram_matrix(texts)
    order = np.random.default_rng(2).permutation(1_000)[:100]
    np.testing.assert_array_equal(cluster_archives(archives[order], gram, 0, order), labels[order])


def test_labels_are_the_same_on_every_device(texts, archives, labels):
    for device in jax.local_devices()[::7]:
        gram, part = jax.device_put((gram_matrix(texts), archives[:64]), device)
        found = cluster_archives(part, gram, 0, jax.device_put(np.arange(64), device))
        np.testing.assert_array_equal(found, labels[:64])


def test_another_seed_gives_other_starts(texts, archives, labels):
    other = cluster_archives(archives, gram_matrix(texts), 1, np.arange(1_000))
    assert (np.asarray(other) != labels).any()


def test_fewer_distinct_concepts_than_clusters():
    texts = jnp.eye(2)[jnp.array([0, 0, 0, 1, 0, 0])]  # two distinct points, K = 3
    found = cluster_archives(
        np.arange(6, dtype=np.int32)[None], gram_matrix(texts), 0, np.zeros(1, int)
    )
    assert oracle.inertia(np.asarray(texts), np.asarray(found[0])) == 0
