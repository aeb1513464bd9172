"""The confusion matrix and its scores, against scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from eval import confusion


@pytest.fixture(params=[2, 21, 171])
def pixels(request):
    """Labels with ignored pixels, predictions, and a class that neither has."""
    rng = np.random.default_rng(request.param)
    classes = request.param
    names = rng.permutation(classes)[: max(classes - 1, 2)]
    labels = rng.choice(names, (4, 40, 50)).astype(np.uint16)
    predictions = np.where(rng.random(labels.shape) < 0.5, labels, rng.choice(names, labels.shape))
    labels[rng.random(labels.shape) < 0.2] = confusion.IGNORE
    labels[3] = confusion.IGNORE
    return labels, predictions.astype(np.int32), classes


def ours(labels, predictions, classes):
    """Counts in padded maps, whose padding would change the result if it were counted."""
    counting = jax.jit(confusion.confusion_matrix, static_argnums=3)
    total = 0
    for truth, found in zip(labels, predictions, strict=True):
        size = np.array(truth.shape)
        padding = ((0, 128 - size[0]), (0, 512 + 64 - size[1]))
        truth = np.pad(truth, padding, constant_values=confusion.IGNORE)
        found = np.pad(found, padding)
        total = total + np.asarray(counting(truth, found, size, classes), np.int64)
    return total


def test_confusion_matrix_equals_sklearn_with_ignored_pixels(pixels):
    labels, predictions, classes = pixels
    counted = labels != confusion.IGNORE
    expected = confusion_matrix(labels[counted], predictions[counted], labels=range(classes))
    np.testing.assert_array_equal(ours(*pixels), expected)


def test_scores_equal_sklearn_over_the_classes_that_occur(pixels):
    labels, predictions, classes = pixels
    counted = labels != confusion.IGNORE
    truth, predicted = labels[counted], predictions[counted]
    occurring = np.union1d(truth, predicted)
    matrix = ours(*pixels)
    expected = jaccard_score(truth, predicted, labels=occurring, average=None)
    iou = confusion.iou(matrix)
    np.testing.assert_allclose(iou[occurring], expected, rtol=1e-12)
    assert np.isnan(np.delete(iou, occurring)).all()
    assert confusion.mean_iou(matrix) == pytest.approx(expected.mean(), rel=1e-12)
    present = np.unique(truth)
    recall = recall_score(truth, predicted, labels=present, average=None)
    np.testing.assert_allclose(confusion.class_accuracy(matrix)[present], recall, rtol=1e-12)
    assert confusion.pixel_accuracy(matrix) == pytest.approx(accuracy_score(truth, predicted))


def test_all_ignored_images_count_nothing_and_give_no_score():
    labels = np.full((2, 8, 8), confusion.IGNORE, np.uint16)
    matrix = ours(labels, np.zeros((2, 8, 8), np.int32), 3)
    assert matrix.sum() == 0
    scores = (confusion.mean_iou, confusion.pixel_accuracy, confusion.constant_mean_iou)
    assert np.isnan([score(matrix) for score in scores]).all()


def test_constant_mean_iou_is_that_of_the_most_frequent_class(pixels):
    labels, _, classes = pixels
    truth = labels[labels != confusion.IGNORE]
    present = np.unique(truth)
    scoring = dict(labels=present, average="macro", zero_division=0)
    best = max(jaccard_score(truth, np.full_like(truth, name), **scoring) for name in present)
    assert confusion.constant_mean_iou(ours(*pixels)) == pytest.approx(best, rel=1e-12)


def test_group_label_counts_equal_a_cross_table(pixels):
    labels, _, classes = pixels
    groups = np.random.default_rng(0).integers(0, 8, labels.shape).astype(np.uint8)
    counts = np.asarray(confusion.group_label_counts(labels, groups, 8, classes))
    counted = labels != confusion.IGNORE
    expected = np.zeros((8, classes), np.int64)
    np.add.at(expected, (groups[counted], labels[counted]), 1)
    np.testing.assert_array_equal(counts, expected)
