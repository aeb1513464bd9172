"""Zero-shot segmentation during training, with the evaluation's own code and rule."""

import dataclasses

import numpy as np
from flax import nnx
from jaxtyping import UInt8

from cocu_jax.input.corpus import Corpus, open_corpus
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.stopping import StopRequest
from eval.protocol import Protocol
from eval.samples import draw_samples
from eval.segmentation import evaluate_segmentation


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A benchmark that a run looks at now and then.

    Attributes:
        corpus: segmentation dataset.
        protocol: its settings.
        limit: only the first so many images; 0 takes all.
        pictures: how many images are also drawn.
    """

    corpus: Corpus
    protocol: Protocol
    limit: int
    pictures: int

    def __call__(self, model: nnx.Module, stop: StopRequest | None) -> dict[str, float]:
        """Figures of the model: `miou`, its bound with the best names for the groups, and others.

        Raises:
            Stopped: `stop` was requested meanwhile.
        """
        result = evaluate_segmentation(
            model,
            self.corpus,
            self.protocol,
            Tokenizer(),
            limit=self.limit or None,
            title="evaluate",
            stop=stop,
        )
        return {
            "evaluation/miou": result.miou,
            "evaluation/bound_miou": result.bound_miou,
            "evaluation/constant_miou": result.constant_miou,
            "evaluation/pixel_accuracy": result.pixel_accuracy,
        }

    def draw(self, model: nnx.Module) -> dict[str, UInt8[np.ndarray, "1 h w 3"]]:
        """The first images with truth, prediction and groups side by side, by name."""
        classes = tuple(self.corpus.metadata["classes"])
        samples = draw_samples(
            model, self.corpus, self.protocol, Tokenizer(), classes, self.pictures
        )
        return {f"evaluation/{key}": np.asarray(sample)[None] for key, sample in samples.items()}


def open_evaluation(config) -> Evaluation | None:
    """The evaluation of a train config, or None if it has none.

    Args:
        config: `evaluation` (`directory`, `split`, `limit`, `pictures`, and fields of `Protocol`),
            and of `data` the fields `mean` and `std`.

    Raises:
        UserError: the dataset cannot be opened or the settings do not fit.
    """
    if not config.evaluation:
        return None
    fields = config.evaluation.to_dict()
    corpus = open_corpus(fields.pop("directory"), fields.pop("split"))
    limit, pictures = fields.pop("limit"), fields.pop("pictures", 0)
    protocol = Protocol(mean=tuple(config.data.mean), std=tuple(config.data.std), **fields)
    return Evaluation(corpus, protocol, limit, pictures)
