"""Curation as method.md states it: NumPy and plain Python, one image at a time, float64."""

import numpy as np


def nearest(query, index, count):
    """Rows of largest inner product, best first, ties in row order."""
    products = index.astype(np.float64) @ query.astype(np.float64)
    return np.argsort(-products, kind="stable")[:count].tolist()


def ranked(anchor, neighbours, images, concepts, texts, gallery, match="exact", capacity=10**9):
    """[(concept id, score, sensitivity)], best first.

    The sensitivity is how much the score changes per change of a similarity: a mean near 0, as only
    random embeddings have it, magnifies rounding.

    Args: the anchor's embedding; rows of its neighbours; all embeddings; each row's list of concept
    ids; text embeddings; names; the rule by which a caption has a concept.
    """
    archive = []
    for row in neighbours:
        for concept in concepts[row]:
            if concept not in archive:
                archive.append(concept)
    archive = archive[:capacity]
    anchor, texts = anchor.astype(np.float64), texts.astype(np.float64)
    largest, scores = 0.0, []
    for concept in archive:
        to_anchor = texts[concept] @ anchor
        similarities = [to_anchor]
        for row in neighbours:
            if match == "exact":
                has = concept in concepts[row]
            else:
                has = gallery[concept] in ",".join(gallery[c] for c in concepts[row])
            if has:
                similarities.append(texts[concept] @ images[row].astype(np.float64))
        largest = max(largest, *similarities)
        scores.append((to_anchor, np.mean(similarities)))
    sensitivity = [(1 + abs(g / mean)) / abs(mean) for g, mean in scores]
    scores = [(g / largest if largest > 0 else 0.0) + g / mean for g, mean in scores]
    order = sorted(range(len(archive)), key=lambda i: (-scores[i], i))
    return [(archive[i], scores[i], sensitivity[i]) for i in order]


def inertia(points, labels):
    """Sum of squared distances to the means of the labels' points."""
    points, total = points.astype(np.float64), 0.0
    for label in set(labels.tolist()):
        members = points[labels == label]
        total += ((members - members.mean(0)) ** 2).sum()
    return total
