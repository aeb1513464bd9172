"""What `transformers` computes on torch: the oracle of the models' tests and benchmarks.

Everything here is torch; nothing of it is needed to run this project.
"""

import tempfile
from unittest import mock

import numpy as np
import torch
import transformers

from cocu_jax.models.clip import CLIP
from cocu_jax.models.groupvit import GroupViT
from cocu_jax.models.weights.huggingface import load_clip, load_groupvit

END_OF_TEXT = 49407

Arrays = dict[str, np.ndarray]


def random_groupvit(seed: int = 0, vision: dict | None = None, text: dict | None = None, **other):
    """A `GroupViTModel` with nothing left at its initial value; published sizes by default."""
    config = transformers.GroupViTConfig(
        vision_config=vision or {}, text_config=text or {}, **other
    )
    return randomise(transformers.GroupViTModel(config), seed)


def random_clip(seed: int = 0, vision: dict | None = None, text: dict | None = None, **other):
    """A `CLIPModel` with nothing left at its initial value; ViT-B/32 by default.

    The end token is told to the text tower, as in every recent checkpoint: transformers' default
    stands for an old bug.
    """
    text = {"eos_token_id": END_OF_TEXT, **(text or {})}
    config = transformers.CLIPConfig(vision_config=vision or {}, text_config=text, **other)
    return randomise(transformers.CLIPModel(config), seed)


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draws every weight, bias, norm, embedding and running statistic; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std):
        return std * torch.randn(tensor.shape, generator=generator)

    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            continue
        elif "embedding" in name and parameter.ndim < 4 or name.endswith("group_token"):
            parameter.copy_(normal(parameter, 0.5))
        elif parameter.ndim > 1:
            parameter.copy_(normal(parameter, parameter[0].numel() ** -0.5))
        else:
            centre = 1.0 if name.endswith("weight") else 0.0
            parameter.copy_(centre + normal(parameter, 0.2))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(normal(buffer, 0.3))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def converted(model: torch.nn.Module) -> GroupViT | CLIP:
    """The same model as ours, through a checkpoint on disk."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        if isinstance(model, transformers.CLIPModel):
            return load_clip(folder)[0]
        return load_groupvit(folder)


def random_images(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Standard normal pixels [batch, height, width, 3]."""
    return np.random.default_rng(seed).standard_normal((*shape, 3), dtype=np.float32)


def random_tokens(
    shape: tuple[int, ...], lengths: tuple[int, int], vocabulary: int = END_OF_TEXT, seed: int = 0
) -> np.ndarray:
    """Token ids [..., context]: random, then the end token, then zeros; closed range of lengths."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, vocabulary - 1, shape)
    ends = rng.integers(lengths[0], lengths[1] + 1, shape[:-1])[..., None] - 1
    positions = np.arange(shape[-1])
    tokens = np.where(positions < ends, tokens, 0)
    return np.where(positions == ends, vocabulary, tokens).astype(np.int32)


def _pixels(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(images).permute(0, 3, 1, 2).contiguous()


def _tokens(tokens: np.ndarray | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(tokens).long().reshape(-1, tokens.shape[-1])


@torch.no_grad()
def groupvit_image(model: transformers.GroupViTModel, images: np.ndarray) -> Arrays:
    """What `encode_image` returns, at any resolution, and how clearly every token was assigned."""
    # The model's own forward has no switch for resized positions; its embeddings do.
    vision = model.vision_model
    embedded = vision.embeddings(_pixels(images), interpolate_pos_encoding=True)
    encoded = vision.encoder(embedded, output_attentions=True, return_dict=True)
    segments = vision.layernorm(encoded.last_hidden_state)
    best = [a.topk(2, dim=1).values for a in encoded.attentions]
    return {
        "image feature": model.visual_projection(segments.mean(1)).numpy(),
        "group features": model.visual_projection(segments.flatten(0, 1)).numpy(),
        "assignment 1": encoded.attentions[0].numpy(),
        "assignment 2": encoded.attentions[1].numpy(),
        "margin": np.array(min(float((1 - b[:, 1] / b[:, 0]).min()) for b in best)),
    }


@torch.no_grad()
def groupvit_text(model: transformers.GroupViTModel, tokens: np.ndarray) -> np.ndarray:
    """Projected text features of [rows, context] tokens."""
    return model.text_projection(model.text_model(_tokens(tokens)).pooler_output).numpy()


@torch.no_grad()
def clip_features(model: transformers.CLIPModel, images: np.ndarray, tokens: np.ndarray) -> Arrays:
    """Projected, unnormalised features of images of any resolution and of texts."""
    image = model.vision_model(_pixels(images), interpolate_pos_encoding=True).pooler_output
    text = model.text_model(_tokens(tokens)).pooler_output
    return {
        "image feature": model.visual_projection(image).numpy(),
        "text feature": model.text_projection(text).numpy(),
    }


def training_loss(
    model: transformers.GroupViTModel,
    multi_label_scale: torch.Tensor,
    images: np.ndarray | torch.Tensor,
    captions: np.ndarray | torch.Tensor,
    prompts: np.ndarray | torch.Tensor,
    gumbel: list[np.ndarray] | None = None,
) -> torch.Tensor:
    """Both losses of one training step on a batch, with given Gumbel noise or torch's own.

    Args:
        model: in training mode. It has no drop-path.
        multi_label_scale: log of the second inverse temperature, which transformers lacks.
        images: [b, h, w, 3].
        captions: [b, context].
        prompts: [b, k, context]; of another context than the captions', they are encoded apart.
        gumbel: noise of each grouping block.
    """
    batch, per_image = prompts.shape[:2]
    if gumbel is None:
        image = model.vision_model(_pixels(images)).pooler_output
    else:
        noise = [torch.from_numpy(g) for g in gumbel]
        with mock.patch("torch.distributions.gumbel.Gumbel.sample", side_effect=noise):
            image = model.vision_model(_pixels(images)).pooler_output
    texts = [_tokens(captions), _tokens(prompts)]
    if captions.shape[-1] == prompts.shape[-1]:
        texts = [torch.cat(texts)]
    text = torch.cat([model.text_model(tokens).pooler_output for tokens in texts])
    normalize = torch.nn.functional.normalize
    image = normalize(model.visual_projection(image), dim=-1)
    caption, prompt = normalize(model.text_projection(text), dim=-1).split(
        [batch, batch * per_image]
    )
    cross_entropy = torch.nn.functional.cross_entropy
    scale = model.logit_scale.exp().clamp(max=100)
    logits = scale * image @ caption.T
    own = torch.arange(batch, device=image.device)
    loss = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    logits = multi_label_scale.exp().clamp(max=100) * image @ prompt.T
    owner = own.repeat_interleave(per_image)
    target = torch.nn.functional.one_hot(owner, batch).T / per_image
    return loss + (cross_entropy(logits, target) + cross_entropy(logits.T, owner)) / 2
