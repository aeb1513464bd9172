"""The evaluate job: a checkpoint and a list of benchmarks in; tables, files and pictures out.

WORKDIR/results.json, results.md     everything evaluated so far
WORKDIR/results/NAME.json, .npy      one benchmark: figures; confusion matrices
WORKDIR/pictures/NAME/KEY.png        some images with their truth, labels and groups
WORKDIR/predictions/NAME/KEY.png     all label maps (config.save_predictions)
WORKDIR/tensorboard                  the figures and the pictures
"""

import dataclasses
import json
import math
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from clu import metric_writers
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, open_corpus
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.stopping import StopRequest
from cocu_jax.workdir import open_workdir
from eval.benchmarks import Benchmark, benchmarks
from eval.checkpoint import load_checkpoint, model_fingerprint
from eval.class_embeddings import read_class_names
from eval.classification import evaluate_classification
from eval.palettes import class_colours
from eval.prediction import Prediction
from eval.protocol import Protocol
from eval.report import format_results
from eval.samples import draw_samples
from eval.segmentation import SegmentationResult, evaluate_segmentation
from eval.submission import write_prediction

_IMAGENET = "imagenet"
_FREE_FIELDS = ("benchmarks", "pictures", "images_per_device")


def evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, dict]:
    """Evaluates every benchmark of the config that has no result in `workdir` yet.

    Args:
        config: see `configs/evaluate.py`.
        workdir: directory of the results.

    Returns:
        Figures by benchmark.

    Raises:
        UserError: checkpoint, datasets or settings are missing or do not fit.
        Stopped: on request; finished benchmarks are kept.
    """
    writes = jax.process_index() == 0
    tasks = [_open_task(name.strip(), config) for name in config.benchmarks.split(",")]
    model, processing = load_checkpoint(config.checkpoint, config.dtype)
    root = open_workdir(workdir, config, free_fields=_FREE_FIELDS, writer=writes)
    fingerprint = model_fingerprint(model)
    with StopRequest() as stop:
        for task in tasks:
            file = root / "results" / f"{task.name}.json"
            if file.exists() and json.loads(file.read_text())["model"] == fingerprint:
                continue
            evaluate_one = _classify if task.name == _IMAGENET else _segment
            figures = evaluate_one(task, config, root, model, processing, stop)
            if writes:
                file.parent.mkdir(parents=True, exist_ok=True)
                record = {"model": fingerprint, "checkpoint": config.checkpoint, **figures}
                file.write_text(json.dumps(record, indent=2))
                _write_scalars(root, task.name, figures)
    if jax.process_count() > 1:  # process 0 has written what the others read now
        multihost_utils.sync_global_devices("results")
    results = {t.name: json.loads((root / f"results/{t.name}.json").read_text()) for t in tasks}
    if writes:
        terminal, markdown = format_results(results)
        (root / "results.json").write_text(json.dumps(results, indent=2))
        (root / "results.md").write_text(markdown)
        print(terminal)
    return results


@dataclasses.dataclass(frozen=True)
class _Task:
    """One entry of `config.benchmarks`, its dataset opened.

    Attributes:
        name: for files and tables.
        title: for people.
        corpus: the dataset.
        protocol: None for classification.
        benchmark: the published benchmark, if it is one.
    """

    name: str
    title: str
    corpus: Corpus
    protocol: Protocol | None = None
    benchmark: Benchmark | None = None


def _open_task(name: str, config: ml_collections.ConfigDict) -> _Task:
    if name == _IMAGENET:
        corpus = _open_prepared(config, "imagenet_validation", "python -m data_prep imagenet")
        return _Task(name, "ImageNet-1k val", corpus)
    if name in benchmarks():
        benchmark = benchmarks()[name]
        command = f"python -m data_prep segmentation --benchmark {name}"
        corpus = _open_prepared(config, f"segmentation/{name}", command)
        protocol = dataclasses.replace(benchmark.protocol, templates=config.templates)
        return _Task(name, benchmark.title, corpus, protocol, benchmark)
    if not epath.Path(name).is_dir():
        known = ", ".join([*benchmarks(), _IMAGENET])
        raise UserError(
            f"config.benchmarks: {name!r} is neither a benchmark nor a directory; "
            f"choose from {known}"
        )
    corpus = open_corpus(name, config.custom.split)
    background = bool(corpus.metadata.get("has_background"))
    protocol = Protocol(
        crop=config.custom.crop,
        stride=config.custom.stride,
        resize_long_short=tuple(config.custom.resize_long_short) or None,
        has_background=background,
        bg_thresh=config.custom.bg_thresh if background else None,
        templates=config.templates,
    )
    return _Task(f"{epath.Path(name).name}-{corpus.fingerprint[:6]}", name, corpus, protocol)


def _open_prepared(config: ml_collections.ConfigDict, place: str, command: str) -> Corpus:
    remedy = f"{command} --root OFFICIAL_FILES --data_dir {config.data_dir or 'DATA_DIR'}"
    if not config.data_dir:
        raise UserError(f"config.data_dir is empty; prepare the dataset with: {remedy}")
    directory = epath.Path(config.data_dir) / place
    if not directory.is_dir():
        raise UserError(f"no dataset at {directory}; prepare it with: {remedy}")
    return open_corpus(str(directory), "validation")


def _segment(
    task: _Task,
    config: ml_collections.ConfigDict,
    root: epath.Path,
    model: nnx.Module,
    processing: ImageProcessing,
    stop: StopRequest,
) -> dict:
    protocol = dataclasses.replace(task.protocol, mean=processing.mean, std=processing.std)
    classes = read_class_names(config.class_names) if config.class_names else None
    tokenizer = Tokenizer()
    result = evaluate_segmentation(
        model,
        task.corpus,
        protocol,
        tokenizer,
        classes=classes,
        windows_per_forward=config.windows_per_forward,
        limit=config.limit or None,
        title=task.title,
        stop=stop,
        visit=_prediction_writer(task, root) if config.save_predictions else None,
    )
    if jax.process_index() == 0:
        folder = root / "results"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{task.name}.npy").open("wb") as file:
            np.save(file, _matrices(result))
        pictures = draw_samples(
            model, task.corpus, protocol, tokenizer, result.classes, config.pictures
        )
        _write_pictures(root, task.name, pictures)
    return _without_nan(
        {
            "title": task.title,
            "images": result.images,
            "official_images": task.benchmark.split_size if task.benchmark else result.images,
            "miou": result.miou,
            "pixel_accuracy": result.pixel_accuracy,
            "class_accuracy": float(np.nanmean(list(result.accuracy.values()))),
            "group_bound_miou": result.bound_miou,
            "constant_miou": result.constant_miou,
            "iou": result.iou,
            "accuracy": result.accuracy,
        }
    )


def _matrices(result: SegmentationResult) -> np.ndarray:
    """The confusion matrix, and that of the best names where there are groups."""
    both = result.confusion, result.group_confusion
    return np.stack([matrix for matrix in both if matrix is not None])


def _without_nan(figures: dict) -> dict:
    """JSON knows no NaN: a score that does not exist becomes null."""
    return {
        key: _without_nan(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and math.isnan(value)
        else value
        for key, value in figures.items()
    }


def _prediction_writer(task: _Task, root: epath.Path) -> Callable[[Prediction], None]:
    folder = root / "predictions" / task.name
    folder.mkdir(parents=True, exist_ok=True)
    classes = task.corpus.metadata["classes"]
    ids = task.benchmark.submission_ids if task.benchmark else range(len(classes))
    colours = class_colours(task.name, len(classes))
    return lambda p: write_prediction(folder, p.key, p.labels, ids, colours)


def _classify(
    task: _Task,
    config: ml_collections.ConfigDict,
    root: epath.Path,
    model: nnx.Module,
    processing: ImageProcessing,
    stop: StopRequest,
) -> dict:
    result = evaluate_classification(
        model,
        task.corpus,
        processing,
        Tokenizer(),
        templates=config.classification_templates,
        images_per_device=config.images_per_device or 32,
        limit=config.limit or None,
        title=task.title,
        stop=stop,
    )
    return {
        "title": task.title,
        "images": result.images,
        "official_images": 50_000,
        "top1": result.top1,
        "top5": result.top5,
    }


def _write_scalars(root: epath.Path, name: str, figures: dict) -> None:
    writer = metric_writers.SummaryWriter(str(root / "tensorboard"))
    numbers = {k: v for k, v in figures.items() if isinstance(v, float)}
    writer.write_scalars(0, {f"{name}/{key}": value for key, value in numbers.items()})
    writer.close()


def _write_pictures(root: epath.Path, name: str, pictures: dict) -> None:
    folder = root / "pictures" / name
    folder.mkdir(parents=True, exist_ok=True)
    writer = metric_writers.SummaryWriter(str(root / "tensorboard"))
    for key, picture in pictures.items():
        with (folder / f"{key}.png").open("wb") as file:
            picture.save(file, "PNG")
        writer.write_images(0, {f"{name}/{key}": np.asarray(picture)[None]})
    writer.close()
