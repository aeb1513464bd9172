"""The tasks of the evaluate job: benchmarks, with their datasets and settings."""

import dataclasses
from typing import Any

import ml_collections
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.files import expand_path, safe_name
from cocu_jax.input.corpus import Corpus, open_corpus
from eval.benchmarks import Benchmark, benchmarks
from eval.class_names import read_class_names
from eval.presets import PRESETS, preset
from eval.protocol import Protocol

IMAGENET = "imagenet"


@dataclasses.dataclass(frozen=True)
class Task:
    """One entry of `config.benchmarks` with its opened dataset.

    Attributes:
        name: name for files: that of the benchmark, and the settings that were changed.
        title: title for tables.
        corpus: the dataset.
        changes: settings that differ from the benchmark's own, to be reported with the results.
        protocol: settings of segmentation; None for classification.
        classes: class names in place of those of the dataset; None: those of the dataset.
        benchmark: the published benchmark; None for a dataset of one's own.
    """

    name: str
    title: str
    corpus: Corpus
    changes: dict[str, Any]
    protocol: Protocol | None = None
    classes: tuple[str, ...] | None = None
    benchmark: Benchmark | None = None


def open_tasks(config: ml_collections.ConfigDict) -> list[Task]:
    """Opens all tasks of a config.

    Raises:
        UserError: a dataset or a file of class names is missing, or a setting is not valid.
    """
    names = [expand_path(name.strip()) for name in config.benchmarks.split(",")]
    return [_open_task(name, config) for name in names]


def _open_task(name: str, config: ml_collections.ConfigDict) -> Task:
    if name == IMAGENET:
        corpus = _open_prepared(config, "imagenet_validation", "python -m data_prep imagenet")
        changes = {}
        if config.classification_templates != "subset":
            changes["classification_templates"] = config.classification_templates
        return Task(_task_name(name, changes), "ImageNet-1k val", corpus, changes)
    if name in benchmarks():
        benchmark = benchmarks()[name]
        command = f"python -m data_prep segmentation --benchmark {benchmark.dataset}"
        corpus = _open_prepared(config, f"segmentation/{benchmark.dataset}", command)
        protocol, title = benchmark.protocol, benchmark.title
        if benchmark.dataset != name:
            corpus = _without_background(corpus)
    else:
        benchmark, corpus, protocol = None, *_open_custom(name, config)
        title, name = name, f"{epath.Path(name).name}-{corpus.fingerprint[:6]}"
    protocol, changes = _change(name, protocol, config)
    classes = None
    if config.class_names:
        classes = read_class_names(config.class_names)
        changes["class_names"] = epath.Path(config.class_names).stem
    return Task(_task_name(name, changes), title, corpus, changes, protocol, classes, benchmark)


def _without_background(corpus: Corpus) -> Corpus:
    """The dataset with the background ignored and the other classes numbered from 0."""
    classes = tuple(corpus.metadata["classes"])[1:]
    changes = {"classes": classes, "has_background": False, "ignored_classes": 1}
    return dataclasses.replace(corpus, metadata={**corpus.metadata, **changes})


def _open_custom(name: str, config: ml_collections.ConfigDict) -> tuple[Corpus, Protocol]:
    """Opens a directory with a segmentation dataset of one's own."""
    if not epath.Path(name).is_dir():
        known = ", ".join([*benchmarks(), IMAGENET])
        raise UserError(
            f"config.benchmarks: {name!r} is neither a benchmark nor a directory; "
            f"choose from {known}"
        )
    corpus = open_corpus(name, config.custom.split)
    background = bool(corpus.metadata.get("has_background"))
    return corpus, Protocol(
        crop=config.custom.crop,
        stride=config.custom.stride,
        resize_long_short=tuple(config.custom.resize_long_short) or None,
        has_background=background,
        bg_thresh=config.custom.bg_thresh if background else None,
    )


def _change(
    name: str, protocol: Protocol, config: ml_collections.ConfigDict
) -> tuple[Protocol, dict[str, Any]]:
    """The protocol with the settings of the config, and those that differ from the benchmark's."""
    published = protocol
    protocol = preset(config.protocol, name, protocol, config.pamr)
    wanted = {
        "dense": config.dense or None,
        "bg_thresh": config.bg_thresh,
        "templates": config.templates or None,
        "softmax": config.softmax,
        "mode": config.mode or None,
    }
    if config.bg_thresh is not None and not protocol.has_background:
        raise UserError(
            f"config.bg_thresh={config.bg_thresh}: {name} has no background class; leave it out"
        )
    changes = {
        field: value
        for field, value in wanted.items()
        if value is not None and value != getattr(protocol, field)
    }
    shown = {} if config.protocol == PRESETS[0] else {"protocol": config.protocol}
    shown |= {"pamr": True} if config.pamr != published.pamr else {}
    return dataclasses.replace(protocol, **changes), shown | changes


def _task_name(name: str, changes: dict[str, Any]) -> str:
    return safe_name("-".join([name, *(f"{key}_{value}" for key, value in changes.items())]))


def _open_prepared(config: ml_collections.ConfigDict, folder: str, command: str) -> Corpus:
    remedy = f"{command} --root OFFICIAL_FILES --data_dir {config.data_dir or 'DATA_DIR'}"
    if not config.data_dir:
        raise UserError(f"config.data_dir is empty; prepare the dataset with: {remedy}")
    directory = epath.Path(config.data_dir) / folder
    if not directory.is_dir():
        raise UserError(f"no dataset at {directory}; prepare it with: {remedy}")
    return open_corpus(str(directory), "validation")
