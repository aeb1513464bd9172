"""The evaluate job: evaluates a checkpoint on benchmarks, and writes tables and pictures.

WORKDIR/results.json, results.md     all results in this directory
WORKDIR/results/NAME.json, .npy      one benchmark: figures; confusion matrices
WORKDIR/pictures/NAME/KEY.png        ground truth, prediction and groups of some images
WORKDIR/predictions/NAME/KEY.png     all label maps (config.save_predictions)
WORKDIR/tensorboard                  the figures and the pictures
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import metric_writers
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from PIL import Image

from cocu_jax.agreement import Agreement
from cocu_jax.files import safe_name, write_file
from cocu_jax.models.clip import CLIP
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.workdir import open_workdir
from eval.checkpoint import load_checkpoint, model_fingerprint
from eval.classification import evaluate_classification
from eval.config import check_config
from eval.palettes import class_colours
from eval.partial import PartialCounts
from eval.prediction import Prediction
from eval.report import format_results
from eval.results import (
    read_all,
    read_record,
    read_result,
    result_identity,
    without_nan,
    write_result,
)
from eval.samples import draw_samples
from eval.segmentation import SegmentationResult, evaluate_segmentation
from eval.segmenter import choose_method
from eval.submission import write_prediction
from eval.tasks import Task, open_tasks

# Fields that may differ between runs in one work directory: each of them is part of the identity of
# a result (`results.result_identity`), or changes no figure.
_FREE_FIELDS = (
    "benchmarks", "data_dir", "pictures", "images_per_device", "windows_per_forward",
    "templates", "classification_templates", "protocol", "dense", "pamr", "class_names",
    "bg_thresh", "softmax", "mode", "checkpoint",
)  # fmt: skip


def evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, dict]:
    """Evaluates every benchmark of the config that has no result in `workdir` yet.

    Args:
        config: see `configs/evaluate.py`.
        workdir: directory of the results.

    Returns:
        Figures by name, of the benchmarks of this config. The tables list all results in `workdir`.

    Raises:
        UserError: the checkpoint, a dataset or a setting is missing or not valid.
        Stopped: a stop was requested. Finished benchmarks and the counts so far are saved.
    """
    check_config(config)
    writes = jax.process_index() == 0
    tasks = open_tasks(config)
    model, processing = load_checkpoint(config.checkpoint, config.dtype)
    root = open_workdir(workdir, config, free_fields=_FREE_FIELDS, writer=writes)
    fingerprint = model_fingerprint(model)
    results = {}
    with Agreement() as agreement:
        for task in tasks:
            task = _with_own_name(task, root / "results", config.checkpoint)
            run = _Run(task, config, root, model, processing, agreement)
            identity = result_identity(task, config, fingerprint, run.method, processing)
            file = root / "results" / f"{task.name}.json"
            if (kept := read_result(file, identity)) is not None:
                results[task.name] = kept
                continue
            figures = without_nan(run.figures(identity))
            results[task.name] = {
                "identity": identity,
                "checkpoint": config.checkpoint,
                "benchmark": task.benchmark.name if task.benchmark else "",
                "settings": run.settings,
                "changes": task.changes,
                **figures,
            }
            if writes:
                write_result(file, results[task.name])
                _write_scalars(root, task.name, figures)
    if writes:
        everything = read_all(root / "results") | results
        write_file(root / "results.json", json.dumps(everything, indent=2))
        write_file(root / "results.md", format_results(everything)[1])
        print(format_results(results)[0])
    if jax.process_count() > 1:  # wait until process 0 has written the results
        multihost_utils.sync_global_devices("results")
    return results


@dataclasses.dataclass(frozen=True)
class _Run:
    """The evaluation of one benchmark."""

    task: Task
    config: ml_collections.ConfigDict
    root: epath.Path
    model: nnx.Module
    processing: ImageProcessing
    agreement: Agreement

    @property
    def settings(self) -> dict | None:
        """Settings that select the published figures, see `published`; None for classification."""
        if self.task.protocol is None:
            return None
        dense = self.task.protocol.dense if isinstance(self.model, CLIP) else None
        return {"protocol": self.config.protocol, "dense": dense, "pamr": self.config.pamr}

    @property
    def method(self) -> Any:
        """The method of segmentation; None for classification."""
        if self.task.protocol is None:
            return None
        statistics = dict(mean=self.processing.mean, std=self.processing.std)
        protocol = dataclasses.replace(self.task.protocol, **statistics)
        return choose_method(self.model, protocol)

    def figures(self, identity: dict) -> dict:
        """Figures of the benchmark; resumes from the counts of an interrupted run."""
        return self.segment(identity) if self.task.protocol else self.classify(identity)

    def segment(self, identity: dict) -> dict:
        """Evaluates zero-shot segmentation; writes matrices, pictures and predictions."""
        task, config, method, tokenizer = self.task, self.config, self.method, Tokenizer()
        partial = self._partial(identity)
        result = evaluate_segmentation(
            self.model,
            task.corpus,
            method.protocol,
            tokenizer,
            classes=task.classes,
            method=method,
            windows_per_forward=config.windows_per_forward,
            limit=config.limit or None,
            title=task.title,
            stop=self.agreement.stop,
            visit=self._prediction_writer() if config.save_predictions else None,
            partial=partial,
        )
        if jax.process_index() == 0:
            buffer = io.BytesIO()
            np.save(buffer, _matrices(result))
            write_file(self.root / "results" / f"{task.name}.npy", buffer.getvalue())
            pictures = draw_samples(
                self.model,
                task.corpus,
                method.protocol,
                tokenizer,
                result.classes,
                config.pictures,
                config.windows_per_forward,
                method,
            )
            _write_pictures(self.root, task.name, pictures)
        partial.remove()
        official = task.benchmark.split_size if task.benchmark else result.images
        return {
            "title": task.title,
            "images": result.images,
            "official_images": official,
            "miou": result.miou,
            "pixel_accuracy": result.pixel_accuracy,
            "class_accuracy": float(np.nanmean(list(result.accuracy.values()))),
            "group_bound_miou": result.bound_miou,
            "constant_miou": result.constant_miou,
            "iou": result.iou,
            "accuracy": result.accuracy,
        }

    def _partial(self, identity: dict) -> PartialCounts:
        part = f"{self.task.name}.part-{jax.process_index()}-of-{jax.process_count()}.npz"
        return PartialCounts(self.root / "results" / part, identity)

    def classify(self, identity: dict) -> dict:
        """Evaluates zero-shot classification."""
        config, partial = self.config, self._partial(identity)
        result = evaluate_classification(
            self.model,
            self.task.corpus,
            self.processing,
            Tokenizer(),
            templates=config.classification_templates,
            images_per_device=config.images_per_device or 32,
            limit=config.limit or None,
            title=self.task.title,
            stop=self.agreement.stop,
            partial=partial,
        )
        partial.remove()
        return {
            "title": self.task.title,
            "images": result.images,
            "official_images": 50_000,
            "top1": result.top1,
            "top5": result.top5,
        }

    def _prediction_writer(self) -> Callable[[Prediction], None]:
        task = self.task
        folder = self.root / "predictions" / task.name
        classes = task.corpus.metadata["classes"]
        ids = task.benchmark.submission_ids if task.benchmark else range(len(classes))
        colours = class_colours(task.benchmark.name if task.benchmark else "", len(classes))
        return lambda p: write_prediction(folder, safe_name(p.key), p.labels, ids, colours)


def _with_own_name(task: Task, results: epath.Path, checkpoint: str) -> Task:
    """The task, renamed if a result of another checkpoint already has its name."""
    kept = read_record(results / f"{task.name}.json")
    if kept is None or kept.get("checkpoint") == checkpoint:
        return task
    mark = hashlib.sha256(checkpoint.encode()).hexdigest()[:6]
    return dataclasses.replace(task, name=f"{task.name}-{mark}")


def _matrices(result: SegmentationResult) -> np.ndarray:
    """The confusion matrix and, for a method with groups, that of the best names."""
    both = result.confusion, result.group_confusion
    return np.stack([matrix for matrix in both if matrix is not None])


def _write_scalars(root: epath.Path, name: str, figures: dict) -> None:
    writer = metric_writers.SummaryWriter(str(root / "tensorboard"))
    numbers = {k: v for k, v in figures.items() if isinstance(v, float)}
    writer.write_scalars(0, {f"{name}/{key}": value for key, value in numbers.items()})
    writer.close()


def _write_pictures(root: epath.Path, name: str, pictures: dict[str, Image.Image]) -> None:
    writer = metric_writers.SummaryWriter(str(root / "tensorboard"))
    for key, picture in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        write_file(root / "pictures" / name / f"{safe_name(key)}.png", buffer.getvalue())
        writer.write_images(0, {f"{name}/{key}": np.asarray(picture)[None]})
    writer.close()
