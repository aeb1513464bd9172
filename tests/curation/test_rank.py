import curation_oracle as oracle
import numpy as np
import pytest
from etils import epath

from cocu_jax.curation.annotate import Annotator
from cocu_jax.curation.embed import EmbeddedShard
from cocu_jax.curation.ragged import Ragged
from cocu_jax.curation.rank import substring_relation
from cocu_jax.curation.search import SearchSettings, search
from cocu_jax.curation.storage.index import Index, shard_arrays
from cocu_jax.curation.storage.shard_files import write_arrays

# Names that contain each other, so that "substring" differs from "exact".
WORDS = ["cat", "cattle", "at", "tree", "street", "car", "scar", "card", "dog", "hot dog", "sea"]


def corpus(kind, images, seed):
    """Embeddings, concept lists with empty and long ones, text embeddings, names."""
    rng = np.random.default_rng(seed)
    gallery = WORDS + [f"{word}{i}" for i in range(9) for word in WORDS]
    pictures = rng.normal(size=(images, 48))
    texts = rng.normal(size=(len(gallery), 48))
    if kind == "clip-like":  # all similarities between images and texts are positive, and close
        pictures, texts = pictures * 0.5 + 1, texts * 0.5 + 0.4
    pictures[-20:] = pictures[:20]  # duplicate images
    count = rng.integers(0, 6, size=images) * (rng.random(images) < 0.8)
    count[50:60] = 30  # archives beyond the capacity
    concepts = [rng.choice(len(gallery), n, replace=False).tolist() for n in count]
    if kind == "lonely":  # every image is its own only neighbour
        pictures = np.eye(images)
        texts = rng.normal(size=(len(gallery), images))
    pictures, texts = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16) for x in (pictures, texts)
    )
    return pictures, concepts, texts, gallery


def annotate(
    folder, pictures, concepts, texts, gallery, match, neighbours, capacity, clusters=False
):
    keys = [str(i).encode() for i in range(len(pictures))]
    shard = EmbeddedShard(
        pictures,
        np.ones(len(pictures), bool),
        Ragged.from_bytes(keys),
        Ragged.from_lists(concepts, np.int32),
    )
    relation = substring_relation(gallery) if match == "substring" else None
    file = epath.Path(folder) / "shard.safetensors"
    write_arrays(file, shard_arrays(shard, texts, relation), {})
    index = Index([file], [len(pictures)])
    (rows,) = search([pictures], index.embeddings, len(index), SearchSettings(neighbours))
    annotator = Annotator(texts, capacity, clusters, seed=0)
    return annotator.annotate(index.entries(rows.reshape(-1)), neighbours, pictures, 0)


@pytest.mark.parametrize(
    ("kind", "match", "images", "neighbours", "capacity"),
    [
        ("random", "exact", 2_000, 8, 24),
        ("clip-like", "exact", 2_000, 8, 24),
        ("random", "substring", 2_000, 8, 24),
        ("clip-like", "substring", 2_000, 8, 24),
        ("lonely", "exact", 200, 1, 64),
        ("clip-like", "exact", 80, 100, 256),  # more neighbours than images
    ],
)
def test_ranked_concepts_equal_the_method_one_image_at_a_time(
    tmp_path, kind, match, images, neighbours, capacity
):
    pictures, concepts, texts, gallery = corpus(kind, images, seed=7)
    found = annotate(tmp_path, pictures, concepts, texts, gallery, match, neighbours, capacity)
    sizes = set()
    for i, picture in enumerate(pictures):
        near = oracle.nearest(picture, pictures, neighbours)
        expected = oracle.ranked(picture, near, pictures, concepts, texts, gallery, match, capacity)
        ids, scores, sensitivity = np.array(expected).reshape(-1, 3).T
        size = len(ids)
        sizes.add(size)
        assert found.concepts[i, :size].tolist() == ids.tolist()
        assert (found.concepts[i, size:] == -1).all()
        # 1e-5, plus what float32 similarities (rounded at 1e-7) can do to an ill-conditioned mean.
        tolerance = 1e-5 * np.maximum(1, np.abs(scores)) + 1e-7 * sensitivity
        assert (np.abs(found.scores[i, :size] - scores) <= tolerance).all()
    if images == 2_000:
        assert (found.found > capacity).any()
        assert kind == "random" or {0, 1, 2, capacity} <= sizes


def test_substring_relation_is_the_comma_joined_string_test():
    gallery = corpus("random", 100, 0)[3]
    relation = substring_relation(gallery)
    for i, name in enumerate(gallery):
        expected = [j for j, other in enumerate(gallery) if j != i and other in f"{name},"]
        assert relation.values[relation.starts[i] : relation.starts[i + 1]].tolist() == expected


def test_an_archive_without_positive_similarities_has_finite_scores(tmp_path):
    pictures = np.array([[1, 0]], np.float16)
    texts = np.array([[-1, 0], [0, 1]], np.float16)
    found = annotate(tmp_path, pictures, [[0, 1]], texts, ["a", "b"], "exact", 1, 4)
    # cos = -1 and 0: the first term is left out, l = 1 for the first and 0 / 0, so 0, for the other
    assert found.concepts[0, :2].tolist() == [0, 1]
    np.testing.assert_allclose(found.scores[0, :2], [1, 0])
