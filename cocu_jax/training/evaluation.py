"""Zero-shot segmentation during training, with the code and protocols of the evaluation job."""

import dataclasses
import re
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, open_corpus
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.settings import Count, only_its_fields, read_settings
from eval.protocol import Protocol
from eval.samples import draw_samples
from eval.segmentation import evaluate_segmentation


@only_its_fields
@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The fields of one entry of `config.evaluation`, without those of `Protocol`.

    Attributes:
        directory: directory of the segmentation dataset.
        split: name of the split.
        every: steps between evaluations; 0: `config.eval_every`. The last step is always evaluated.
        limit: number of images, the first of the split; 0: all.
        pictures: number of images that are also drawn.
        name: used in the names of figures from the second evaluation on; empty: the dataset's name.
    """

    directory: str
    split: str
    every: Count = 0
    limit: Count = 0
    pictures: Count = 0
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A benchmark that is evaluated in regular intervals during training.

    Attributes:
        corpus: segmentation dataset.
        protocol: how it is evaluated.
        settings: which images are evaluated, and when.
        prefix: first part of the names of figures: "evaluation" for the first benchmark,
            "evaluation/NAME" for others.
    """

    corpus: Corpus
    protocol: Protocol
    settings: EvaluationConfig
    prefix: str

    def due(self, step: int, last: bool) -> bool:
        """Whether the model is evaluated after this step."""
        return last or (self.settings.every > 0 and step % self.settings.every == 0)

    def __call__(self, model: nnx.Module, stop: Callable[[int], bool]) -> dict[str, float]:
        """Figures of the model, by name.

        `miou`, `pixel_accuracy`, `bound_miou` (every group is given its best class) and
        `constant_miou` (all pixels are given one class).

        A CLIP has no groups, and so no bound.

        Raises:
            Stopped: a stop was requested meanwhile.
        """
        result = evaluate_segmentation(
            model,
            self.corpus,
            self.protocol,
            Tokenizer(),
            limit=self.settings.limit or None,
            title=self.prefix,
            stop=stop,
        )
        names = ("miou", "bound_miou", "constant_miou", "pixel_accuracy")
        figures = {f"{self.prefix}/{name}": getattr(result, name) for name in names}
        return {name: value for name, value in figures.items() if value is not None}

    def draw(self, model: nnx.Module) -> dict[str, UInt8[np.ndarray, "1 h w 3"]]:
        """The first images with ground truth, prediction and groups side by side, by name."""
        classes = tuple(self.corpus.metadata["classes"])
        samples = draw_samples(
            model, self.corpus, self.protocol, Tokenizer(), classes, self.settings.pictures
        )
        return {f"{self.prefix}/{key}": np.asarray(sample)[None] for key, sample in samples.items()}


def open_evaluations(config: ml_collections.ConfigDict) -> tuple[Evaluation, ...]:
    """The evaluations of a train config; none if `config.evaluation` is None or empty.

    Raises:
        UserError: a dataset cannot be opened, or a setting is not allowed.
    """
    evaluations = []
    for settings, protocol in evaluation_settings(config):
        try:
            corpus = open_corpus(settings.directory, settings.split)
        except UserError as error:
            raise UserError(
                f"config.evaluation: {error}; or train without one: --config.evaluation=None"
            ) from None
        prefix = f"evaluation/{_name(settings)}" if evaluations else "evaluation"
        if prefix in [other.prefix for other in evaluations]:
            raise UserError(
                f"config.evaluation: two entries have the name {prefix!r}; set the `name` of one"
            )
        evaluations.append(Evaluation(corpus, protocol, settings, prefix))
    return tuple(evaluations)


def evaluation_settings(
    config: ml_collections.ConfigDict,
) -> list[tuple[EvaluationConfig, Protocol]]:
    """Checks `config.evaluation`: a mapping, a sequence of them, or None.

    Raises:
        UserError: a field is unknown or missing, or has a value that is not allowed.
    """
    if not config.evaluation:
        return []
    several = isinstance(config.evaluation, Sequence)
    entries = config.evaluation if several else [config.evaluation]
    names = {field.name for field in dataclasses.fields(EvaluationConfig)}
    found = []
    for index, entry in enumerate(entries):
        place = f"config.evaluation[{index}]" if several else "config.evaluation"
        own = {name: value for name, value in entry.items() if name in names}
        settings = read_settings(EvaluationConfig, own, place)
        rest = {name: value for name, value in entry.items() if name not in names}
        rest |= {"mean": config.data.mean, "std": config.data.std}
        rest["resize_long_short"] = rest.get("resize_long_short", (2048, 448)) or None
        rest["large_images"] = rest.get("large_images") or None
        if not rest.get("has_background"):
            rest["bg_thresh"] = None
        protocol = read_settings(Protocol, rest, place)
        found.append(
            (dataclasses.replace(settings, every=settings.every or config.eval_every), protocol)
        )
    return found


def _name(settings: EvaluationConfig) -> str:
    """The given name, else the last part of the directory that is not a version number."""
    parts = [part for part in settings.directory.split("/") if part]
    while len(parts) > 1 and re.fullmatch(r"\d+\.\d+\.\d+", parts[-1]):
        parts.pop()
    return settings.name or parts[-1]
