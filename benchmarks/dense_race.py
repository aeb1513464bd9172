"""Dense NACLIP with a CLIP ViT-B/16 against torch, on images like a benchmark's."""

import dataclasses
import pathlib
import statistics
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from benchmarks.dense_oracle import PerImageDense, patch_features
from benchmarks.figures import print_figure
from benchmarks.published_naclip import PublishedNaclip
from benchmarks.segmentation_race import count_images, count_one_by_one, make_images, timed
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.image_processing import ImageProcessing
from eval.benchmarks import get_benchmark
from eval.checkpoint import load_checkpoint
from eval.dense import class_words
from eval.images import EvaluatedImage
from eval.prediction import predict
from eval.presets import preset
from eval.protocol import Protocol
from eval.segmenter import Segmenter, make_segmenter, replicate

# The background class has several words, every other class has one.
_BACKGROUND = "sky, wall, tree, wood, grass, road, sea, river, mountain, sand, desk, bed, building"


def race_dense(name: str, naclip: str, repeats: int) -> None:
    """Times both implementations alternately, and compares labels and logits.

    Args:
        name: name of the benchmark.
        naclip: directory of the published repository; empty: the formula in plain torch.
        repeats: number of repetitions; the medians are compared.
    """
    benchmark = get_benchmark(name)
    classes = benchmark.classes
    if benchmark.protocol.has_background:
        classes = (_BACKGROUND, *classes[1:])
    protocol = preset("naclip", name, benchmark.protocol)
    protocol = dataclasses.replace(protocol, mode="slide", templates="simple")
    oracle, segmenter = make_rivals(classes, protocol, naclip)
    images = make_images(name, protocol, len(classes))
    seconds = {"ours": [], "torch": []}
    count_images(segmenter, images)  # compiles
    for _ in range(repeats):
        seconds["ours"].append(timed(count_images, segmenter, images))
        seconds["torch"].append(timed(count_one_by_one, oracle, images, len(classes)))
    median = {key: statistics.median(values) for key, values in seconds.items()}
    subject = f"evaluation/{'published_' if naclip else ''}naclip_{name}"
    print_figure(f"{subject}/images_per_second", len(images) / median["ours"], "images/s")
    ratio = median["torch"] / median["ours"]
    print_figure(f"{subject}/speedup_over_torch", ratio, "ratio", 1.5)
    compare(subject, segmenter, oracle, images)


def make_rivals(
    classes: tuple[str, ...], protocol: Protocol, naclip: str
) -> tuple[PerImageDense | PublishedNaclip, Segmenter]:
    """The same random model in torch and here; the words are random unit vectors."""
    class_ids = [class_id for class_id, _ in class_words(classes, protocol.has_background)]
    torch.manual_seed(0)
    theirs = None if naclip else random_clip()
    width = theirs.config.projection_dim if theirs else 512
    words = F.normalize(torch.randn(len(class_ids), width), dim=-1)
    processing = ImageProcessing(224)
    protocol = dataclasses.replace(protocol, mean=processing.mean, std=processing.std)
    with tempfile.TemporaryDirectory() as folder:
        if naclip:
            oracle = PublishedNaclip(naclip, words, class_ids, protocol)
            checkpoint = pathlib.Path(folder) / "clip.pt"
            sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
            tensors = {name: torch.tensor(size) for name, size in sizes.items()}
            torch.save(oracle.net.state_dict() | tensors, checkpoint)
        else:
            oracle = PerImageDense(theirs, words, class_ids, protocol)
            checkpoint = pathlib.Path(folder) / "clip"
            oracle.model.save_pretrained(checkpoint)
        model, _ = load_checkpoint(str(checkpoint))
    segmenter = make_segmenter(model, classes, protocol, Tokenizer())
    embeddings = segmenter.embeddings._replace(vectors=replicate(words.numpy(), segmenter.mesh))
    return oracle, dataclasses.replace(segmenter, embeddings=embeddings)


def random_clip() -> transformers.CLIPModel:
    """ViT-B/16; weights large enough that patches differ."""
    vision = transformers.CLIPVisionConfig(patch_size=16, projection_dim=512)
    config = transformers.CLIPConfig(vision_config=vision.to_dict(), projection_dim=512)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.vision_model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02 if "patch" in name else 0.04)
    return model


def compare(
    subject: str,
    segmenter: Segmenter,
    oracle: PerImageDense | PublishedNaclip,
    images: list[EvaluatedImage],
) -> None:
    """Prints the share of equal labels, and the largest difference of a window's logits."""
    labels = {p.key: p.labels for p in predict(segmenter, images)}
    same = [(labels[image.key] == oracle(image.image, image.size)).mean() for image in images]
    print_figure(f"{subject}/identical_labels", np.mean(same), "share", 0.9999)
    crop = segmenter.protocol.crop
    window = images[0].image[:crop, :crop]
    (encoded,) = segmenter.encode([dataclasses.replace(images[0], image=window)])
    pixels = torch.tensor(window).permute(2, 0, 1).float() / 255
    pixels = (pixels - oracle.mean) / oracle.std
    if isinstance(oracle, PublishedNaclip):
        theirs, ours = oracle.window_logits(pixels), torch.tensor(encoded.outputs)
        ours = F.interpolate(ours, (crop, crop), mode="bilinear")[0]
    else:
        features = F.normalize(patch_features(oracle.model, pixels[None], "naclip"), dim=-1)
        theirs, ours = (features @ oracle.words.T)[0], torch.tensor(encoded.outputs[0])
        theirs = theirs.permute(2, 0, 1)
    difference = (ours - theirs).abs().max().item()
    print_figure(f"{subject}/logit_difference", difference, "cosine", 1e-4, "lower")
