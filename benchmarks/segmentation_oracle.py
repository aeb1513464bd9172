"""Zero-shot segmentation with GroupViT in torch, one image and one window at a time.

Written from the published rule, to compare results and speed with `eval`, with which it shares no
code. The model is the GroupViT of `transformers`. Every class has a full score map, and every
window is a batch of one.
"""

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GroupViTModel

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)


class PerImageSegmenter:
    """Segments images with a `transformers` GroupViT.

    Args:
        model: the model.
        tokens: [c, t] token ids of each class's prompt, background not among them.
        crop: side of a window.
        stride: step of the windows.
        bg_thresh: threshold of the background class; None: there is none.
    """

    def __init__(
        self,
        model: GroupViTModel,
        tokens: np.ndarray,
        crop: int,
        stride: int,
        bg_thresh: float | None,
    ):
        self.model, self.crop, self.stride, self.bg_thresh = model.eval(), crop, stride, bg_thresh
        with torch.no_grad():
            pooled = model.text_model(input_ids=torch.from_numpy(tokens).long()).pooler_output
            self.texts = F.normalize(model.text_projection(pooled), dim=-1)
            self.scale = model.logit_scale.exp().clamp(max=100).item()

    def __call__(self, image: np.ndarray, original: tuple[int, int]) -> np.ndarray:
        """Labels [oh, ow] of a resized uint8 image [h, w, 3]."""
        return self.scores(image, original).argmax(0).numpy()

    @torch.no_grad()
    def scores(self, image: np.ndarray, original: tuple[int, int]) -> torch.Tensor:
        """Class scores [c, oh, ow] of a resized uint8 image [h, w, 3]."""
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        pixels = (pixels - MEAN) / STD
        height, width = image.shape[:2]
        classes = len(self.texts) + (self.bg_thresh is not None)
        total = torch.zeros(classes, height, width)
        count = torch.zeros(height, width)
        for top in self.starts(height):
            for left in self.starts(width):
                rows, columns = slice(top, top + self.crop), slice(left, left + self.crop)
                total[:, rows, columns] += self.window_scores(pixels[..., rows, columns])
                count[rows, columns] += 1
        return F.interpolate((total / count)[None], original, mode="bilinear")[0]

    def starts(self, length: int) -> list[int]:
        """First pixel of every window along one side."""
        starts = [0]
        while starts[-1] + self.crop < length:
            starts.append(min(starts[-1] + self.stride, length - self.crop))
        return starts

    def window_scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores [c, h, w] of normalised pixels [1, 3, h, w]."""
        member, names = self.window_groups(pixels)
        scores = F.one_hot(member, len(names)).float() @ names
        scores = scores.permute(2, 0, 1)
        if self.bg_thresh is None:
            return scores
        threshold = min(self.bg_thresh, names.max().item())
        background = (scores.max(0).values < threshold).float()
        return torch.cat([background[None], scores])

    @torch.no_grad()
    def window_groups(
        self, pixels: torch.Tensor, size: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Group [h, w] of every pixel, and scores [g, c] of every group, without background.

        The patches are stretched over `size` pixels; None: over those that they were made of.
        """
        tower = self.model.vision_model
        tokens = tower.embeddings(pixels, interpolate_pos_encoding=True)
        encoded = tower.encoder(tokens, output_attentions=True, return_dict=True)
        groups = tower.layernorm(encoded.last_hidden_state)[0]
        image = self.model.visual_projection(groups.mean(0, keepdim=True))
        groups = self.model.visual_projection(groups)

        patches = encoded.attentions[1] @ encoded.attentions[0]
        rows, columns = (side // tower.config.patch_size for side in pixels.shape[-2:])
        patches = patches.reshape(1, -1, rows, columns)
        size = size or pixels.shape[-2:]
        member = F.interpolate(patches, size, mode="bilinear")[0].argmax(0)

        logits = F.normalize(groups, dim=-1) @ self.texts.T * self.scale
        overall = (F.normalize(image, dim=-1) @ self.texts.T * self.scale).softmax(-1)[0]
        kept = overall.topk(min(5, len(self.texts))).indices
        masked = torch.full_like(logits, -torch.inf)
        masked[:, kept] = logits[:, kept]
        return member, masked.softmax(-1) * logits.softmax(-1)
