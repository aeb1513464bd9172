"""Samples for the report: scenes segmented by every run, and curated scenes.

Samples are the first scenes of a split or evenly spaced ones, never picked by hand.
"""

import dataclasses
from collections.abc import Mapping

import ml_collections
import numpy as np
import tensorflow as tf
from flax import nnx
from jaxtyping import Int, UInt8

from cocu_jax.input.config import input_config
from cocu_jax.input.corpus import Corpus, open_corpus, read_shard
from cocu_jax.input.sources import open_source
from cocu_jax.input.text_builder import make_text_builder
from cocu_jax.models.tokenizer import Tokenizer
from eval.images import EvaluatedImage, read_images
from eval.prediction import Prediction, predict
from eval.protocol import Protocol
from eval.segmenter import make_segmenter

_SHOWN_NEIGHBOURS = 8


@dataclasses.dataclass(frozen=True)
class SceneSample:
    """One scene with its ground truth and the prediction of every run.

    Attributes:
        image: RGB pixels.
        truth: class of every pixel.
        labels: run -> predicted class of every pixel.
        groups: run -> group of every pixel, of those that the whole scene forms in one window.
    """

    image: UInt8[np.ndarray, "h w 3"]
    truth: Int[np.ndarray, "h w"]
    labels: Mapping[str, Int[np.ndarray, "h w"]]
    groups: Mapping[str, Int[np.ndarray, "h w"]]


@dataclasses.dataclass(frozen=True)
class RankedConcept:
    """A curated concept.

    Attributes:
        name: the concept.
        score: what it is ranked by.
        in_caption: whether the caption names it.
        in_scene: whether the scene shows it.
        cluster: which concepts it was clustered with; -1 where there were too few to cluster.
    """

    name: str
    score: float
    in_caption: bool
    in_scene: bool
    cluster: int


@dataclasses.dataclass(frozen=True)
class CurationSample:
    """One scene with its caption, its nearest scenes and its curated concepts.

    Attributes:
        image: PNG bytes.
        caption: its text.
        shown: names of what the scene shows.
        neighbours: (PNG bytes, caption) of the nearest other scenes, nearest first.
        concepts: all curated concepts, best first.
    """

    image: bytes
    caption: str
    shown: tuple[str, ...]
    neighbours: tuple[tuple[bytes, str], ...]
    concepts: tuple[RankedConcept, ...]


@dataclasses.dataclass(frozen=True)
class WholeWay:
    """All that happens to one training scene, from its caption to its labels.

    Attributes:
        curation: caption, neighbours and ranked concepts.
        prompts: those of each of the first epochs.
        scene: as the CoCu run segments it, under its own name.
    """

    curation: CurationSample
    prompts: list[list[str]]
    scene: SceneSample


def segmentation_samples(
    models: Mapping[str, nnx.Module], corpus: Corpus, protocol: Protocol, count: int = 12
) -> list[SceneSample]:
    """The first scenes of a split, segmented by every run's model.

    Args:
        models: run -> GroupViT.
        corpus: a segmentation dataset of square scenes.
        protocol: how it is evaluated. Labels are those of this protocol; groups are those of the
            whole scene in one window, because groups of different windows are unrelated.
        count: number of scenes.
    """
    one_window = dataclasses.replace(
        protocol, stride=protocol.crop, resize_long_short=(protocol.crop, protocol.crop)
    )
    scenes, resized = (  # images are resized by the protocol
        list(read_images(corpus, used, 0, 1, count)) for used in (protocol, one_window)
    )
    classes = tuple(corpus.metadata["classes"])
    labelled = _predictions(models, classes, scenes, protocol)
    grouped = _predictions(models, classes, resized, one_window)
    return [
        SceneSample(
            image=scene.image,
            truth=scene.labels.astype(int),
            labels={run: seen[scene.key].labels for run, seen in labelled.items()},
            groups={run: seen[scene.key].groups for run, seen in grouped.items()},
        )
        for scene in scenes
    ]


def _predictions(
    models: Mapping[str, nnx.Module],
    classes: tuple[str, ...],
    scenes: list[EvaluatedImage],
    protocol: Protocol,
) -> dict[str, dict[str, Prediction]]:
    """Run -> key of the scene -> prediction."""
    predictions = {}
    for run, model in models.items():
        segmenter = make_segmenter(model, classes, protocol, Tokenizer())
        predictions[run] = {found.key: found for found in predict(segmenter, scenes)}
    return predictions


def curation_samples(corpus: Corpus, annotations: str, count: int = 10) -> list[CurationSample]:
    """Evenly spaced scenes of a curated split.

    Args:
        corpus: the split, with the true concepts of its scenes.
        annotations: directory of its concept annotations.
        count: number of scenes.
    """
    rows = set(np.linspace(0, corpus.num_examples - 1, count).astype(int).tolist())
    curated = _examples(open_corpus(annotations, corpus.split), rows=rows)
    near = {
        example["key"]: [key for key in example["neighbours"] if key != example["key"]]
        for example in curated
    }
    keys = {key for keys in near.values() for key in keys[:_SHOWN_NEIGHBOURS]}
    scenes = {example["key"]: example for example in _examples(corpus, keys=keys | near.keys())}
    gallery = corpus.metadata["gallery"]
    return [
        _curation_sample(
            scenes[example["key"]],
            [scenes[key] for key in near[example["key"]][:_SHOWN_NEIGHBOURS]],
            example,
            gallery,
        )
        for example in curated
    ]


def sampled_prompts(data: ml_collections.ConfigDict, seed: int, epochs: int) -> list[list[str]]:
    """Prompts of the first example of a run's first corpus, as the run draws them in each epoch.

    Args:
        data: the run's `config.data`.
        seed: the run's.
        epochs: how many epochs.
    """
    config = input_config(data)
    source = open_source(config.corpora[0], config.concepts)
    record, annotation = (
        next(iter(tf.data.TFRecordDataset(corpus.shard_files[0])))
        for corpus in (source.corpus, source.annotations)
    )
    examples = make_text_builder(config, (source,), seed)(
        tf.zeros([epochs], tf.int64),
        tf.range(epochs, dtype=tf.int64),
        tf.fill([epochs], record),
        tf.fill([epochs], annotation),
    )
    tokenizer = Tokenizer()
    rows = zip(examples.fields["caption"].numpy(), examples.fields["prompts"].numpy(), strict=True)
    return [  # a prompt of zeros stands for the caption
        [tokenizer.decode(prompt if prompt.any() else caption) for prompt in prompts]
        for caption, prompts in rows
    ]


def _examples(corpus: Corpus, rows: set[int] = frozenset(), keys: set[bytes] = frozenset()):
    """Examples that are at one of the rows or have one of the keys, in order."""
    examples, row = [], 0
    for shard in range(corpus.num_shards):
        for example in read_shard(corpus, shard).as_numpy_iterator():
            if row in rows or example["key"] in keys:
                examples.append(example)
            row += 1
    return examples


def _curation_sample(scene: dict, near: list[dict], curated: dict, gallery) -> CurationSample:
    named, shown = (set(scene[name].tolist()) for name in ("caption_concepts", "concepts"))
    return CurationSample(
        image=scene["image"],
        caption=scene["caption"].decode(),
        shown=tuple(gallery[i] for i in scene["concepts"]),
        neighbours=tuple((other["image"], other["caption"].decode()) for other in near),
        concepts=tuple(
            RankedConcept(gallery[i], float(score), i in named, i in shown, int(cluster))
            for i, score, cluster in zip(
                curated["concepts"].tolist(), curated["scores"], curated["clusters"], strict=True
            )
        ),
    )
