"""Evaluation of whole images against torch: complete patches, stretched over the image."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from miniature import CLASSES, make_images, make_model
from pamr_oracle import pamr_oracle
from small_clip import small_clip
from transformers import GroupViTModel

from benchmarks import dense_oracle
from benchmarks.segmentation_oracle import PerImageSegmenter
from cocu_jax.errors import UserError
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import load_clip, save_groupvit
from eval.images import EvaluatedImage
from eval.prediction import predict
from eval.protocol import Protocol
from eval.scores import class_scores
from eval.segmenter import make_segmenter

pytestmark = pytest.mark.usefixtures("small_tiles")

PATCH = 8
# Sides that are no multiples of the patch, one of less than a patch, and two of the same patches.
SIZES = {(40, 61): (25, 38), (40, 60): (33, 64), (59, 40): (90, 41), (5, 90): (7, 131)}
PROTOCOL = Protocol(
    mode="whole",
    resize_long_short=(90, 40),
    templates="simple",
    pamr_dilations=(1, 4),  # the program has a term for every neighbour: few compile fast
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)


def images():
    pictures = [image for image, _ in make_images(list(SIZES), 3)]
    rng = np.random.default_rng(0)  # flat areas amplify rounding in the refinement
    pictures = [np.clip(p + rng.normal(0, 4, p.shape), 0, 255).astype(np.uint8) for p in pictures]
    return [
        EvaluatedImage(str(size), picture, SIZES[size])
        for size, picture in zip(SIZES, pictures, strict=True)
    ]


def whole_patches(image: np.ndarray) -> torch.Tensor:
    """The complete patches of an image (at least one), normalised [1, 3, h, w]."""
    height, width = image.shape[:2]
    filled = np.full((max(height, PATCH), max(width, PATCH), 3), 128, np.uint8)  # the mean
    filled[:height, :width] = image
    height, width = (side // PATCH * PATCH for side in filled.shape[:2])
    pixels = torch.tensor(filled[:height, :width]).permute(2, 0, 1)[None]
    return (pixels.float() / 255 - 0.5) / 0.25


def refined(image: np.ndarray, scores: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    large = F.interpolate(pixels, size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    return pamr_oracle(large, scores.permute(1, 2, 0).numpy(), PROTOCOL.pamr_dilations, 10)


def compare(labels: np.ndarray, scores: np.ndarray, slack: float) -> set[int]:
    """Checks that labels are the argmax of scores [h, w, c], ties aside; returns the classes."""
    two = np.sort(scores, -1)[..., -2:]
    clear = two[..., 1] - two[..., 0] > slack
    assert clear.mean() > 0.97
    np.testing.assert_array_equal(labels[clear], scores.argmax(-1)[clear])
    return set(np.unique(labels))


@pytest.mark.parametrize("pamr", [False, pytest.param(True, marks=pytest.mark.slow)])
@torch.no_grad()
def test_dense_clip_on_whole_images_equals_torch(tmp_path, pamr):
    torch_model = small_clip()
    torch_model.save_pretrained(tmp_path)
    model, _ = load_clip(str(tmp_path))
    protocol = dataclasses.replace(PROTOCOL, pamr=pamr)
    prompts = Tokenizer()([f"a photo of a {name}." for name in CLASSES])
    words = dense_oracle.word_embeddings(torch_model, prompts, 1)

    segmenter = make_segmenter(model, CLASSES, protocol, Tokenizer())
    examples = images()[: 1 if pamr else None]
    found = {p.key: p for p in predict(segmenter, examples)}

    assert len(found) == len(examples)
    seen = set()
    for example in examples:
        features = dense_oracle.patch_features(torch_model, whole_patches(example.image), "naclip")
        logits = (F.normalize(features, dim=-1) @ words.T).permute(0, 3, 1, 2)
        logits = F.interpolate(logits, example.image.shape[:2], mode="bilinear")
        probabilities = (logits[0] * protocol.logit_scale).softmax(0)
        scores = class_scores(segmenter, found[example.key])
        assert np.abs(scores - probabilities.numpy()).max() < 2**-10  # float16
        logits = F.interpolate(logits, example.size, mode="bilinear")[0]
        if pamr:
            logits, slack = refined(example.image, logits, example.size), 1e-5
        else:
            logits, slack = logits.permute(1, 2, 0).numpy(), 1e-6
        seen |= compare(found[example.key].labels, logits, slack)
    assert len(seen) > 1


@pytest.mark.parametrize("pamr", [pytest.param(False, marks=pytest.mark.slow), True])
@torch.no_grad()
def test_groupvit_on_whole_images_equals_torch(tmp_path, pamr):
    model = make_model()
    save_groupvit(model, str(tmp_path / "groupvit"))
    protocol = dataclasses.replace(PROTOCOL, pamr=pamr)
    tokens = Tokenizer()([f"a photo of a {name}." for name in CLASSES])
    theirs = GroupViTModel.from_pretrained(str(tmp_path / "groupvit"))
    oracle = PerImageSegmenter(theirs, tokens, 0, 0, None)

    segmenter = make_segmenter(model, CLASSES, protocol, Tokenizer())
    examples = images()[: 1 if pamr else None]
    found = {p.key: p for p in predict(segmenter, examples)}

    assert len(found) == len(examples)
    seen = set()
    for example in examples:
        pixels = whole_patches(example.image)
        member, names = oracle.window_groups(pixels, example.image.shape[:2])
        scores = (F.one_hot(member, len(names)).float() @ names).permute(2, 0, 1)
        scores = F.interpolate(scores[None], example.size, mode="bilinear")[0]
        if pamr:
            scores = refined(example.image, scores, example.size)
        else:
            scores = scores.permute(1, 2, 0).numpy()
        seen |= compare(found[example.key].labels, scores, 1e-5)
        assert found[example.key].groups.shape == example.image.shape[:2]
    assert len(seen) > 1


def test_whole_images_need_a_size():
    with pytest.raises(UserError, match="mode='whole' needs resize_long_short"):
        Protocol(mode="whole", resize_long_short=None)
    with pytest.raises(UserError, match="mode='all' is not a mode; choose one of slide, whole"):
        Protocol(mode="all")
