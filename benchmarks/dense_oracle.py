"""Dense CLIP in torch, written from the papers around `transformers`' CLIP: images to labels.

Shares no code with the project. Every product is spelled out, so that a variant reads as in its
paper: MaskCLIP (2112.01071), SCLIP (2312.01597), ClearCLIP (2407.12442), NACLIP (2404.08181).
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
import transformers


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
        weights = (k @ k.transpose(2, 3) * scale + neighbourhood(side_y, side_x)).softmax(-1)
    mixed = attention.out_proj((weights @ v).transpose(1, 2).reshape(y.shape))
    if variant in ("clearclip", "naclip"):
        x = mixed
    else:
        x = x + mixed
        x = x + last.mlp(last.layer_norm2(x))
    features = model.visual_projection(vision.post_layernorm(x))[:, 1:]
    return features.reshape(len(images), side_y, side_x, -1)


@functools.cache
def neighbourhood(rows: int, columns: int) -> torch.Tensor:
    """Gaussian of the distance of every two patches; nothing from and to the class token."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    squares = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    return torch.tensor(np.pad(np.exp(-squares / (2 * 5.0**2)), (1, 0)), dtype=torch.float32)


@torch.no_grad()
def word_embeddings(model, tokens: np.ndarray, templates: int) -> torch.Tensor:
    """Prompts [w * templates, t] -> unit embeddings [w, p]: unit prompts, mean, unit again."""
    features = model.get_text_features(torch.tensor(np.asarray(tokens), dtype=torch.long))
    features = getattr(features, "pooler_output", features)
    features = F.normalize(features, dim=-1)
    width = features.shape[-1]
    return F.normalize(features.reshape(-1, templates, width).mean(1), dim=-1)


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
            features = F.normalize(patch_features(model, window, variant), dim=-1)
            logits = (features @ words.T).permute(0, 3, 1, 2)
            large = F.interpolate(logits, (crop, crop), mode="bilinear", align_corners=False)[0]
            total[:, top : top + crop, left : left + crop] += large
            covered[top : top + crop, left : left + crop] += 1
    return F.interpolate((total / covered)[None], size, mode="bilinear", align_corners=False)[0]


class PerImageDense:
    """Segments images with a `transformers` CLIP, one window at a time.

    Args:
        model: the model.
        words: unit embeddings [w, p] of the words of all classes.
        class_ids: class [w] of every word.
        protocol: crop, stride, scale and threshold (None: no background), and mean and deviation.
        variant: method that computes the patch features.
    """

    def __init__(self, model, words, class_ids, protocol, variant="naclip"):
        self.model, self.words, self.variant = model.eval(), words, variant
        self.class_ids, self.protocol = torch.tensor(class_ids), protocol
        self.mean, self.std = (
            torch.tensor(x)[:, None, None] for x in (protocol.mean, protocol.std)
        )

    @torch.no_grad()
    def __call__(self, image: np.ndarray, original: tuple[int, int]) -> np.ndarray:
        """Labels [oh, ow] of a resized uint8 image [h, w, 3]."""
        protocol = self.protocol
        pixels = torch.tensor(image).permute(2, 0, 1).float() / 255
        pixels = (pixels - self.mean) / self.std
        sizes = protocol.crop, protocol.stride, original
        scores = logits(self.model, pixels, self.words, self.variant, *sizes)
        scores = (scores * protocol.logit_scale).softmax(0)
        best, word = scores.max(0)
        labels = self.class_ids[word]
        if protocol.bg_thresh is not None:
            labels[best < protocol.bg_thresh] = 0
        return labels.numpy()
