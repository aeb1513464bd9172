"""Dense CLIP in torch, written from the papers around `transformers`' CLIP: windows to logits.

Shares no code with the project. Every product is spelled out, so that a variant reads as in its
paper: MaskCLIP (2112.01071), SCLIP (2312.01597), ClearCLIP (2407.12442), NACLIP (2404.08181).
"""

import math

import numpy as np
import torch
import transformers


def small_clip(patch: int = 8, image: int = 32) -> transformers.CLIPModel:
    """Random weights, large enough that patches differ."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        vision_config=dict(
            hidden_size=48, num_attention_heads=4, num_hidden_layers=3, intermediate_size=96,
            image_size=image, patch_size=patch, projection_dim=24,
        ),
        text_config=dict(
            hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64,
            vocab_size=49408, max_position_embeddings=77, projection_dim=24,
            eos_token_id=49407, bos_token_id=49406, pad_token_id=0,
        ),
        projection_dim=24,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6 if "token_embedding" not in name else 20)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def patch_features(model: transformers.CLIPModel, images: torch.Tensor, variant: str):
    """Normalised images [b, 3, h, w] -> projected patch features [b, y, x, p]."""
    vision = model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(images, interpolate_pos_encoding=True))
    for layer in vision.encoder.layers[:-1]:
        x = layer(x, attention_mask=None)
        x = x[0] if isinstance(x, tuple) else x
    last = vision.encoder.layers[-1]
    attention, heads = last.self_attn, last.self_attn.num_heads
    y = last.layer_norm1(x)

    def split(z):
        return z.reshape(*z.shape[:2], heads, -1).transpose(1, 2)

    q, k, v = (split(f(y)) for f in (attention.q_proj, attention.k_proj, attention.v_proj))
    scale = q.shape[-1] ** -0.5
    side_y, side_x = (s // vision.embeddings.patch_size for s in images.shape[2:])
    if variant == "clip":
        weights = (q @ k.transpose(2, 3) * scale).softmax(-1)
    elif variant == "maskclip":
        weights = torch.eye(y.shape[1]).expand(*q.shape[:2], -1, -1)
    elif variant == "sclip":
        weights = sum((z @ z.transpose(2, 3) * scale).softmax(-1) for z in (q, k))
    elif variant == "clearclip":
        weights = (q @ q.transpose(2, 3) * scale).softmax(-1)
    else:
        near = torch.zeros(y.shape[1], y.shape[1])
        for a in range(side_y * side_x):
            for b in range(side_y * side_x):
                square = (a // side_x - b // side_x) ** 2 + (a % side_x - b % side_x) ** 2
                near[1 + a, 1 + b] = math.exp(-square / (2 * 5.0**2))
        weights = (k @ k.transpose(2, 3) * scale + near).softmax(-1)
    mixed = attention.out_proj((weights @ v).transpose(1, 2).reshape(y.shape))
    if variant in ("clearclip", "naclip"):
        x = mixed
    else:
        x = x + mixed
        x = x + last.mlp(last.layer_norm2(x))
    features = model.visual_projection(vision.post_layernorm(x))[:, 1:]
    return features.reshape(len(images), side_y, side_x, -1)


@torch.no_grad()
def word_embeddings(model, tokens: np.ndarray, templates: int) -> torch.Tensor:
    """Prompts [w * templates, t] -> unit embeddings [w, p]: unit prompts, mean, unit again."""
    features = model.get_text_features(torch.tensor(np.asarray(tokens), dtype=torch.long))
    features = getattr(features, "pooler_output", features)
    features = torch.nn.functional.normalize(features, dim=-1)
    return torch.nn.functional.normalize(features.reshape(-1, templates, 24).mean(1), dim=-1)


@torch.no_grad()
def logits(model, image, words, variant, crop, stride, size) -> torch.Tensor:
    """Similarity of every word at every pixel [w, *size] of a normalised image [3, h, w]."""
    _, height, width = image.shape

    def starts(length):
        count = max(length - crop + stride - 1, 0) // stride + 1
        return [min(i * stride, length - crop) for i in range(count)]

    total, covered = torch.zeros(len(words), height, width), torch.zeros(height, width)
    for top in starts(height):
        for left in starts(width):
            window = image[None, :, top : top + crop, left : left + crop]
            features = torch.nn.functional.normalize(patch_features(model, window, variant), dim=-1)
            logits = (features @ words.T).permute(0, 3, 1, 2)
            large = torch.nn.functional.interpolate(
                logits, (crop, crop), mode="bilinear", align_corners=False
            )[0]
            total[:, top : top + crop, left : left + crop] += large
            covered[top : top + crop, left : left + crop] += 1
    return torch.nn.functional.interpolate(
        (total / covered)[None], size, mode="bilinear", align_corners=False
    )[0]
