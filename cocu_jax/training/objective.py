"""What a run trains: a model and its loss, cut in two where the rows of a batch first meet.

`features` treats every row alone, so it can run on parts of the batch; `loss` needs all rows at
once, for it holds the batch normalisation of the projectors and the contrastive losses. Gradient
accumulation (`training.step`) relies on that cut.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from cocu_jax.input.augment import device_augment
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.keys import Keys, split_rows
from cocu_jax.models.losses import (
    multi_label_loss,
    normalize,
    sigmoid_loss,
    temperature_scale,
)
from cocu_jax.training.model_settings import model_settings
from cocu_jax.training.programs import tune

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]
# Puts rows, split over devices, whole on every device (`mesh.row_gatherer`).
Gather = Callable[[Array], Array]


class Features(NamedTuple):
    """What the towers say about some rows, before the projectors.

    Attributes:
        image: [b, d].
        texts: [b, 1 + k, e]: of each row's caption, then of its prompts. One array, rows first, so
            that neither a mesh over rows nor batch normalisation sees where captions end.
    """

    image: Float[Array, "b d"]
    texts: Float[Array, "b n e"]


class Objective(NamedTuple):
    """A model and its loss.

    Attributes:
        settings: the model's.
        build: makes the model from random keys.
        features: (model, batch with uint8 images) -> features and metrics of those rows. All noise
            of a row comes from its `noise`, so it is the same wherever in the batch the row is.
        loss: (model, features of all rows, gather) -> loss and metrics; moves batch statistics.
    """

    settings: GroupViTConfig | CLIPConfig
    build: Callable[[Keys], nnx.Module]
    features: Callable[[nnx.Module, Batch], tuple[Features, Metrics]]
    loss: Callable[[nnx.Module, Features, Gather], tuple[Float[Array, ""], Metrics]]


def make_objective(config, device_kind: str = "") -> Objective:
    """The objective of a train config.

    Args:
        device_kind: JAX's name of the devices, which `config.tuned` chooses programs for.
        config: `objective`, `model` (fields of `GroupViTConfig` or `CLIPConfig`), and of `data` the
            fields `augment`, `mean` and `std`.

    Raises:
        UserError: a field of the model is unknown or has a value that is not allowed.
    """
    settings = model_settings(config)
    if config.tuned:
        settings = tune(settings, device_kind)
    model_class, features, loss = {
        "groupvit": (GroupViT, groupvit_features, groupvit_loss),
        "clip": (CLIP, clip_features, clip_loss),
    }[config.objective]
    mode, mean, std = config.data.augment, tuple(config.data.mean), tuple(config.data.std)

    def features_of(model, batch: Batch) -> tuple[Features, Metrics]:
        image_keys, keys = split_rows(row_keys(batch))
        images = device_augment(batch["image"], image_keys, mode=mode, mean=mean, std=std)
        return features(model, batch | {"image": images}, keys)

    return Objective(settings, lambda rngs: model_class(settings, rngs=rngs), features_of, loss)


def row_keys(batch: Batch) -> Key[Array, "b"]:
    """The random key of every row, of the batch's `noise`."""
    return jax.random.wrap_key_data(batch["noise"], impl="threefry2x32")


def groupvit_features(
    model: GroupViT, batch: Batch, keys: Key[Array, "b"]
) -> tuple[Features, Metrics]:
    """Mean segment of each image, with Gumbel noise and drop-path, and text features."""
    drop_keys, gumbel_keys = split_rows(keys)
    gumbel = model.draw_gumbel(gumbel_keys, batch["image"].shape)
    tokens, assignments = model.image(batch["image"], drop_keys, gumbel)
    metrics = {
        f"group_entropy/stage{i + 1}": usage_entropy(jax.lax.stop_gradient(soft))
        for i, soft in enumerate(assignments)
    }
    return Features(tokens.astype(jnp.float32).mean(1), _text_features(model, batch)), metrics


def groupvit_loss(
    model: GroupViT, features: Features, gather: Gather
) -> tuple[Float[Array, ""], Metrics]:
    """Contrastive loss of image and caption plus multi-label loss of image and prompts.

    The images' features stay split by rows and those of the texts are gathered, so a device
    holds the logits of its own images only.
    """
    image = normalize(model.image_projector(features.image, train=True))
    texts = normalize(model.text_projector(features.texts, train=True))
    contrastive, metrics = _loss_of(model, image, gather(texts[:, :1]), "contrastive")
    if texts.shape[1] == 1:
        return contrastive, metrics
    multi_label, more = _loss_of(model, image, gather(texts[:, 1:]), "multi_label")
    return contrastive + multi_label, metrics | more


def clip_features(model: CLIP, batch: Batch, keys: Key[Array, "b"]) -> tuple[Features, Metrics]:
    """Projected features of images and captions; nothing is random."""
    texts = model.encode_text(batch["caption"][:, None])
    return Features(model.encode_image(batch["image"]), texts), {}


def clip_loss(model: CLIP, features: Features, gather: Gather) -> tuple[Float[Array, ""], Metrics]:
    """Contrastive loss of images and captions."""
    captions = gather(normalize(features.texts[:, :1]))
    return _loss_of(model, normalize(features.image), captions, "contrastive")


def _loss_of(
    model: nnx.Module, image: Float[Array, "b d"], texts: Float[Array, "b k d"], name: str
) -> tuple[Float[Array, ""], Metrics]:
    """A loss by the model's own scalars: a temperature, and a bias where it is the sigmoid's."""
    prefix = "" if name == "contrastive" else f"{name}_"
    log_scale = getattr(model, f"{prefix}log_scale")[...]
    metrics = {f"temperature/{name}": temperature_scale(log_scale)}
    if hasattr(model, f"{prefix}logit_bias"):
        bias = getattr(model, f"{prefix}logit_bias")[...]
        loss = sigmoid_loss(image, texts, log_scale, bias)
        metrics[f"bias/{name}"] = bias
    else:
        loss = multi_label_loss(image, texts, log_scale)
    return loss, metrics | {f"loss/{name}": loss}


def usage_entropy(soft: Float[Array, "b s n"]) -> Float[Array, ""]:
    """How evenly an image's tokens spread over its segments: 0 is one segment, 1 all alike.

    Entropy of the share of tokens that each segment wins, over log(s), mean over images.
    """
    won = jax.nn.one_hot(soft.argmax(1), soft.shape[1]).mean(1)
    return jax.scipy.special.entr(won).sum(-1).mean() / math.log(soft.shape[1])


def _text_features(model: GroupViT, batch: Batch) -> Float[Array, "b n e"]:
    """Text features of captions and prompts, each encoded at its own length.

    A prompt of zeros stands for the row's caption and takes its feature.
    """
    texts = [batch["caption"][:, None]]
    if "prompts" in batch:
        texts.append(batch["prompts"])
    if len({tokens.shape[-1] for tokens in texts}) == 1:  # once through is faster than twice
        texts = [jnp.concatenate(texts, axis=1)]
    features = jnp.concatenate([model.text(tokens) for tokens in texts], axis=1)
    if "prompts" not in batch:
        return features
    caption = jnp.pad(batch["prompts"][..., 0] == 0, ((0, 0), (1, 0)))
    return jnp.where(caption[..., None], features[:, :1], features)
