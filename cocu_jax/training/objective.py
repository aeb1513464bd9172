"""What a run trains: a model and its loss, divided where examples of a batch first interact.

`features` processes every example on its own, so it can run on parts of the batch. `loss` needs all
examples at once, because it contains the batch normalisation of the projectors and the contrastive
losses. Gradient accumulation (`training.gradients`) relies on this division.
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
from cocu_jax.models.keys import Keys, split_each
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
# Replicates an array that is split like the batch (`mesh.make_gather`).
Gather = Callable[[Array], Array]


class Features(NamedTuple):
    """Outputs of the towers, before the projectors.

    Attributes:
        image: [b, d].
        texts: [b, 1 + k, e]: for each example its caption, then its k prompts. They form one array,
            so that they share one batch normalisation and are split over the mesh by example.
    """

    image: Float[Array, "b d"]
    texts: Float[Array, "b n e"]


class Objective(NamedTuple):
    """A model and its loss.

    Attributes:
        model_config: settings of the model.
        build: initialises the model from random keys.
        features: (model, batch with uint8 images) -> features and metrics of those examples. All
            random numbers are derived from an example's `noise`, so they do not depend on its place
            in the batch.
        loss: (model, features of all examples, gather) -> loss and metrics; updates the batch
            statistics of the model.
    """

    model_config: GroupViTConfig | CLIPConfig
    build: Callable[[Keys], nnx.Module]
    features: Callable[[nnx.Module, Batch], tuple[Features, Metrics]]
    loss: Callable[[nnx.Module, Features, Gather], tuple[Float[Array, ""], Metrics]]


def make_objective(config, device_kind: str = "") -> Objective:
    """The objective of a train config.

    Args:
        config: `objective`, `model` (fields of `GroupViTConfig` or `CLIPConfig`), and of `data` the
            fields `augment`, `mean` and `std`.
        device_kind: JAX's name of the devices; with `config.tuned` it selects faster programs.

    Raises:
        UserError: a field of the model is unknown or has a value that is not allowed.
    """
    model_config = model_settings(config)
    if config.tuned:
        model_config = tune(model_config, device_kind)
    model_class, features, loss = {
        "groupvit": (GroupViT, groupvit_features, groupvit_loss),
        "clip": (CLIP, clip_features, clip_loss),
    }[config.objective]
    mode, mean, std = config.data.augment, tuple(config.data.mean), tuple(config.data.std)

    def features_of(model, batch: Batch) -> tuple[Features, Metrics]:
        image_keys, keys = split_each(example_keys(batch))
        images = device_augment(batch["image"], image_keys, mode=mode, mean=mean, std=std)
        return features(model, batch | {"image": images}, keys)

    return Objective(
        model_config, lambda rngs: model_class(model_config, rngs=rngs), features_of, loss
    )


def example_keys(batch: Batch) -> Key[Array, "b"]:
    """The random key of every example, made from the batch's `noise`."""
    return jax.random.wrap_key_data(batch["noise"], impl="threefry2x32")


def groupvit_features(
    model: GroupViT, batch: Batch, keys: Key[Array, "b"]
) -> tuple[Features, Metrics]:
    """Mean segment token of each image, with Gumbel noise and drop-path, and text features."""
    drop_keys, gumbel_keys = split_each(keys)
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

    Image features stay split over the devices and text features are gathered, so each device holds
    the logits of its own images only.
    """
    image = normalize(model.image_projector(features.image, train=True))
    texts = normalize(model.text_projector(features.texts, train=True))
    contrastive, metrics = _loss_of(model, image, gather(texts[:, :1]), "contrastive")
    if texts.shape[1] == 1:
        return contrastive, metrics
    multi_label, more = _loss_of(model, image, gather(texts[:, 1:]), "multi_label")
    return contrastive + multi_label, metrics | more


def clip_features(model: CLIP, batch: Batch, keys: Key[Array, "b"]) -> tuple[Features, Metrics]:
    """Projected features of images and captions; deterministic, so the keys are not used."""
    texts = model.encode_text(batch["caption"][:, None])
    return Features(model.encode_image(batch["image"]), texts), {}


def clip_loss(model: CLIP, features: Features, gather: Gather) -> tuple[Float[Array, ""], Metrics]:
    """Contrastive loss of images and captions."""
    captions = gather(normalize(features.texts[:, :1]))
    return _loss_of(model, normalize(features.image), captions, "contrastive")


def _loss_of(
    model: nnx.Module, image: Float[Array, "b d"], texts: Float[Array, "b k d"], name: str
) -> tuple[Float[Array, ""], Metrics]:
    """The softmax or, if the model has a logit bias, the sigmoid loss, with the model's scalars."""
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
    """How evenly tokens are distributed over segments, from 0 (all in one) to 1 (evenly).

    Entropy of each segment's share of an image's tokens, divided by log(s); mean over images.
    """
    shares = jax.nn.one_hot(soft.argmax(1), soft.shape[1]).mean(1)
    return jax.scipy.special.entr(shares).sum(-1).mean() / math.log(soft.shape[1])


def _text_features(model: GroupViT, batch: Batch) -> Float[Array, "b n e"]:
    """Text features of captions and prompts, each encoded at its own length.

    A prompt of zeros stands for the example's caption and gets the caption's feature.
    """
    texts = [batch["caption"][:, None]]
    if "prompts" in batch:
        texts.append(batch["prompts"])
    if len({tokens.shape[-1] for tokens in texts}) == 1:  # one larger batch is faster than two
        texts = [jnp.concatenate(texts, axis=1)]
    features = jnp.concatenate([model.text(tokens) for tokens in texts], axis=1)
    if "prompts" not in batch:
        return features
    caption = jnp.pad(batch["prompts"][..., 0] == 0, ((0, 0), (1, 0)))
    return jnp.where(caption[..., None], features[:, :1], features)
