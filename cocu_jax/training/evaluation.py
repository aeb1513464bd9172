"""Zero-shot segmentation during training, with the evaluation's own code and rule."""

import dataclasses

from flax import nnx

from cocu_jax.input.corpus import Corpus, open_corpus
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.stopping import StopRequest
from eval.protocol import Protocol
from eval.segmentation import evaluate_segmentation


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A benchmark that a run looks at now and then.

    Attributes:
        corpus: segmentation dataset.
        protocol: its settings.
        limit: only the first so many images; 0 takes all.
    """

    corpus: Corpus
    protocol: Protocol
    limit: int

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


def open_evaluation(config) -> Evaluation | None:
    """The evaluation of a train config, or None if it has none.

    Args:
        config: `evaluation` (`directory`, `split`, `limit`, and fields of `Protocol`), and of
            `data` the fields `mean` and `std`.

    Raises:
        UserError: the dataset cannot be opened or the settings do not fit.
    """
    if not config.evaluation:
        return None
    fields = config.evaluation.to_dict()
    corpus = open_corpus(fields.pop("directory"), fields.pop("split"))
    limit = fields.pop("limit")
    protocol = Protocol(mean=tuple(config.data.mean), std=tuple(config.data.std), **fields)
    return Evaluation(corpus, protocol, limit)
