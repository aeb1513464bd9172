"""The figures and pictures of finished stages, gathered for the report."""

import json
import os
import platform
from collections.abc import Mapping

import ml_collections
from etils import epath

from cocu_jax.demo.report import Results
from cocu_jax.demo.samples import (
    WholeWay,
    curation_samples,
    sampled_prompts,
    segmentation_samples,
)
from cocu_jax.input.corpus import open_corpus
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import load_clip, load_groupvit
from cocu_jax.training.evaluation import Evaluation, open_evaluations
from cocu_jax.training.metrics import read_metrics
from eval.dense import DenseMethod
from eval.segmentation import SegmentationResult, evaluate_segmentation

_SHOWN_EPOCHS = 3  # whose prompts are shown for one scene


def reported_benchmark(config: ml_collections.ConfigDict, split: str = "validation") -> Evaluation:
    """The benchmark of a train config on another split than the one training looked at."""
    config = config.copy_and_resolve_references()
    config.evaluation.split = split
    (evaluation,) = open_evaluations(config)
    return evaluation


def measure_run(export: epath.Path, benchmark: Evaluation) -> dict:
    """Zero-shot segmentation of an exported model.

    Args:
        export: Hugging Face folder of the model.
        benchmark: what to measure it on.

    Returns:
        mIoU, its bound with the best name for every group, that of a constant prediction, pixel
        accuracy (all in [0, 1]), and the IoU of each class (None where it never occurs).
    """
    title = f"evaluate {benchmark.corpus.split}"
    return _figures(
        evaluate_segmentation(
            load_groupvit(str(export)),
            benchmark.corpus,
            benchmark.protocol,
            Tokenizer(),
            title=title,
        )
    )


def measure_dense_clip(export: epath.Path, benchmark: Evaluation) -> dict:
    """Zero-shot segmentation by an exported CLIP whose patches are compared with the classes.

    Args:
        export: Hugging Face folder of the CLIP.
        benchmark: what to measure it on; its protocol says how patches are read.

    Returns:
        As `measure_run`; there are no groups, so the bound is None.
    """
    model, _ = load_clip(str(export))
    return _figures(
        evaluate_segmentation(
            model,
            benchmark.corpus,
            benchmark.protocol,
            Tokenizer(),
            method=DenseMethod(benchmark.protocol),
            title="evaluate CLIP",
        )
    )


def _figures(result: SegmentationResult) -> dict:
    return {
        "miou": result.miou,
        "bound_miou": result.bound_miou,
        "constant_miou": result.constant_miou,
        "pixel_accuracy": result.pixel_accuracy,
        "iou": {name: None if iou != iou else iou for name, iou in result.iou.items()},
    }


def gather_results(
    config: ml_collections.ConfigDict,
    dataset: str,
    benchmark: Evaluation,
    entries: Mapping[str, Mapping],
    directories: Mapping[str, list[epath.Path]],
) -> Results:
    """Collects the results of all stages for the report.

    Args:
        config: the demo's.
        dataset: directory of the scenes.
        benchmark: what the runs were measured on.
        entries: the ledger.
        directories: stage -> its directory of every seed.
    """
    pretrain = open_corpus(dataset, "pretrain")
    runs = [stage for stage in directories if stage not in ("clip", "curate")]
    quality = {
        stage: [entries[_name(folder)]["quality"] for folder in folders]
        for stage, folders in directories.items()
    }
    models = {run: load_groupvit(str(directories[run][0] / "export")) for run in runs}
    annotations = directories["curate"][0] / "annotations"
    curations = curation_samples(pretrain, str(annotations))
    cocu = json.loads((directories["cocu"][0] / "config.json").read_text())
    (scene,) = segmentation_samples({"cocu": models["cocu"]}, pretrain, benchmark.protocol, count=1)
    prompts = sampled_prompts(ml_collections.ConfigDict(cocu["data"]), cocu["seed"], _SHOWN_EPOCHS)
    return Results(
        classes=benchmark.corpus.metadata["classes"],
        stuff=benchmark.corpus.metadata["stuff"],
        runs={run: quality[run] for run in runs},
        dense_clip=quality["clip"],
        curation=quality["curate"],
        logs={
            stage: [read_metrics(folder) for folder in folders]
            for stage, folders in directories.items()
            if stage != "curate"
        },
        scenes=segmentation_samples(models, benchmark.corpus, benchmark.protocol),
        curations=curations,
        way=WholeWay(curations[0], prompts, scene),
        omitted={
            "things": pretrain.metadata["things_omitted"],
            "stuff": pretrain.metadata["stuff_omitted"],
        },
        seconds={stage: entry["seconds"] for stage, entry in entries.items()},
        settings=json.loads(config.to_json_best_effort()),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        credit=pretrain.metadata["credit"],
    )


def _name(folder: epath.Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
