"""Dense CLIP against torch, from the features of a window to the labels of an image."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from miniature import decode_photo, encode_photos, make_images, write_corpus
from pamr_oracle import pamr_oracle
from PIL import Image, ImageFilter
from small_clip import small_clip

from benchmarks import dense_oracle as oracle
from cocu_jax.errors import UserError
from cocu_jax.models.dense_clip import VARIANTS, dense_features
from cocu_jax.models.templates import SUBSET_TEMPLATES
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import load_clip
from eval import pamr
from eval.images import EvaluatedImage, read_images
from eval.prediction import predict
from eval.protocol import Protocol
from eval.segmenter import make_segmenter

pytestmark = pytest.mark.usefixtures("small_tiles")

CLASSES = ("sky, wall", "car, truck", "tree", *(f"thing number {i}" for i in range(17)))
WORDS = ("sky", "wall", "car", "truck", "tree", *(f"thing number {i}" for i in range(17)))
OWNERS = np.array([0, 0, 1, 1, 2, *range(3, 20)])
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROTOCOL = Protocol(
    crop=32,
    stride=16,
    resize_long_short=None,
    has_background=True,
    bg_thresh=0.25,
    templates="subset",
    logit_scale=40.0,
    mean=MEAN,
    std=STD,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch_model = small_clip()
    folder = tmp_path_factory.mktemp("clip")
    torch_model.save_pretrained(folder)
    return torch_model, load_clip(str(folder))[0]


def normalised(image: np.ndarray) -> np.ndarray:
    return ((image / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_patch_features_equal_the_papers_formulas(models, variant, size):
    torch_model, model = models
    images = np.stack([normalised(image) for image, _ in make_images([size] * 2, 2)])

    ours = np.asarray(dense_features(model, jnp.array(images), variant))

    theirs = oracle.patch_features(torch_model, torch.tensor(images).permute(0, 3, 1, 2), variant)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs.numpy()) < 1e-5 * np.linalg.norm(theirs)


def test_variants_differ(models):
    image = normalised(make_images([(32, 32)], 2)[0][0])[None]

    found = [np.asarray(dense_features(models[1], jnp.array(image), v)) for v in VARIANTS]

    for i, first in enumerate(found):
        for second in found[:i]:
            assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("variant", [pytest.param("maskclip", marks=pytest.mark.slow), "naclip"])
def test_labels_equal_the_oracle_with_synonyms_background_and_windows(models, variant):
    torch_model, model = models
    protocol = dataclasses.replace(PROTOCOL, dense=variant)
    tokenizer = Tokenizer()
    prompts = tokenizer([t.format(word) for word in WORDS for t in SUBSET_TEMPLATES])
    words = oracle.word_embeddings(torch_model, prompts, len(SUBSET_TEMPLATES))
    images = [image for image, _ in make_images([(48, 72), (70, 40)], 2)]
    sizes = (37, 90), (100, 60)

    segmenter = make_segmenter(model, CLASSES, protocol, tokenizer)
    evaluated = [
        EvaluatedImage(str(i), image, size)
        for i, (image, size) in enumerate(zip(images, sizes, strict=True))
    ]
    ours = {prediction.key: prediction.labels for prediction in predict(segmenter, evaluated)}

    for example in evaluated:
        pixels = torch.tensor(normalised(example.image)).permute(2, 0, 1)
        logits = oracle.logits(torch_model, pixels, words, variant, 32, 16, example.size)
        scores = (logits * protocol.logit_scale).softmax(0).numpy()
        best = scores.max(0)
        theirs = np.where(best < protocol.bg_thresh, 0, OWNERS[scores.argmax(0)])
        second = np.sort(scores, 0)[-2]
        clear = (best - second > 1e-6) & (np.abs(best - protocol.bg_thresh) > 1e-6)
        assert clear.mean() > 0.999
        assert (ours[example.key] == theirs)[clear].all()
        assert 0.05 < (theirs == 0).mean() < 0.95 and len(np.unique(theirs)) > 4


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_and_window_logits_of_jpegs_equal_the_oracle(models, variant, tmp_path):
    """Colour, turned, grey and CMYK; from the files of a dataset to labels at their own size."""
    torch_model, model = models
    protocol = dataclasses.replace(
        PROTOCOL, dense=variant, has_background=False, bg_thresh=None, templates="simple"
    )
    prompts = Tokenizer()([f"a photo of a {word}." for word in WORDS])
    words = oracle.word_embeddings(torch_model, prompts, 1)
    pairs = make_images([(150, 200), (200, 133), (96, 131), (128, 240)], len(CLASSES))
    files = encode_photos([smooth(image) for image, _ in pairs])
    masks = [mask for _, mask in pairs]
    corpus = write_corpus(tmp_path, list(zip(files, masks, strict=True)), CLASSES, False)
    segmenter = make_segmenter(model, CLASSES, protocol, Tokenizer())
    same = pixels = 0
    for found in predict(segmenter, read_images(corpus, protocol, 0, 1)):
        image = decode_photo(files[int(found.key)])
        normal = torch.tensor(normalised(image)).permute(2, 0, 1)
        features = oracle.patch_features(torch_model, normal[None, :, :32, :32], variant)
        first = torch.nn.functional.normalize(features, dim=-1) @ words.T
        assert np.abs(found.outputs[0] - first[0].permute(2, 0, 1).numpy()).max() < 1e-4
        logits = oracle.logits(torch_model, normal, words, variant, 32, 16, image.shape[:2])
        same += (found.labels == OWNERS[logits.argmax(0).numpy()]).sum()
        pixels += found.labels.size
    print(f"{variant}: {same / pixels:.6%} of {pixels:,} labels")
    assert pixels == sum(mask.size for mask in masks) and same / pixels >= 0.9999


def smooth(image: np.ndarray) -> np.ndarray:
    """Colours that run into one another, as in photos."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(3)))


def test_refined_labels_equal_the_oracle(models):
    torch_model, model = models
    protocol = dataclasses.replace(PROTOCOL, pamr=True, pamr_dilations=(1, 4))
    tokenizer = Tokenizer()
    prompts = tokenizer([t.format(word) for word in WORDS for t in SUBSET_TEMPLATES])
    words = oracle.word_embeddings(torch_model, prompts, len(SUBSET_TEMPLATES))
    image, size = make_images([(40, 56)], 2)[0][0], (33, 70)
    noise = np.random.default_rng(0).normal(0, 4, image.shape)  # flat areas amplify rounding
    image = np.clip(image + noise, 0, 255).astype(np.uint8)

    segmenter = make_segmenter(model, CLASSES, protocol, tokenizer)
    (prediction,) = predict(segmenter, [EvaluatedImage("x", image, size)])

    pixels = torch.tensor(normalised(image)).permute(2, 0, 1)
    arguments = torch_model, pixels, words, "naclip", 32, 16, size
    logits = oracle.logits(*arguments).permute(1, 2, 0).numpy()
    large = torch.nn.functional.interpolate(
        torch.tensor(image).permute(2, 0, 1)[None].float(), size, mode="bilinear"
    )[0]
    refined = pamr_oracle(
        large.permute(1, 2, 0).numpy(), logits, protocol.pamr_dilations, pamr.STEPS
    )
    scores = torch.tensor(refined * protocol.logit_scale).softmax(-1).permute(2, 0, 1).numpy()
    best = scores.max(0)
    theirs = np.where(best < protocol.bg_thresh, 0, OWNERS[scores.argmax(0)])
    unrefined = OWNERS[logits.argmax(-1)]
    clear = (best - np.sort(scores, 0)[-2] > 1e-5) & (np.abs(best - protocol.bg_thresh) > 1e-5)
    assert clear.mean() > 0.99
    assert (prediction.labels == theirs)[clear].all()
    assert (theirs != unrefined)[theirs > 0].any()


def test_an_unknown_variant_is_refused(models):
    protocol = dataclasses.replace(PROTOCOL, dense="nacl")

    with pytest.raises(UserError, match="dense='nacl': choose one of clip, maskclip, "):
        make_segmenter(models[1], CLASSES, protocol, Tokenizer())
