"""NACLIP's published code (github.com/sinahmr/NACLIP, MIT licence), run from a copy of it.

Its own model and inference are imported as they are. MMSegmentation, which only brings images to
it, is replaced by the few names that it imports.
"""

import importlib
import importlib.util
import pathlib
import sys
import tempfile
import types

import numpy as np
import torch


class PublishedNaclip:
    """Segments images with the published code, a ViT-B/16 with random weights.

    Args:
        folder: a copy of the repository.
        words: unit embeddings [w, p] of the words of all classes.
        class_ids: class [w] of every word, in order.
        protocol: crop, stride, scale and threshold, and mean and deviation.
    """

    def __init__(self, folder: str, words: torch.Tensor, class_ids: list[int], protocol):
        self.net, published = _import(folder, words.shape[1])
        names = [[] for _ in range(max(class_ids) + 1)]
        for word, class_id in enumerate(class_ids):
            names[class_id].append(f"word {word}")
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(", ".join(own) for own in names))
            file.flush()
            self.naclip = published.NACLIP(
                "",
                file.name,
                torch.device("cpu"),
                pamr_steps=0,
                prob_thd=protocol.bg_thresh or 0.0,
                logit_scale=protocol.logit_scale,
                slide_stride=protocol.stride,
                slide_crop=protocol.crop,
            )
        self.naclip.query_features = words
        statistics = protocol.mean, protocol.std
        self.mean, self.std = (torch.tensor(x)[:, None, None] for x in statistics)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, original: tuple[int, int]) -> np.ndarray:
        """Labels [oh, ow] of a resized uint8 image [h, w, 3]."""
        pixels = torch.tensor(image).permute(2, 0, 1).float() / 255
        pixels = ((pixels - self.mean) / self.std)[None]
        (sample,) = self.naclip.predict(pixels, [_Sample(original)])
        return sample.fields["pred_sem_seg"].data[0].numpy()

    @torch.no_grad()
    def window_logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits [w, crop, crop] of a normalised window [3, crop, crop]."""
        return self.naclip.forward_feature(pixels[None])[0]


class _Sample:
    """What MMSegmentation hands over for an image, and takes back."""

    def __init__(self, original: tuple[int, int]):
        self.metainfo, self.fields = {"ori_shape": original}, {}

    def set_data(self, fields: dict) -> None:
        self.fields |= fields


class _Segmentor(torch.nn.Module):
    def __init__(self, data_preprocessor=None):
        super().__init__()


class _Registry:
    def register_module(self):
        return lambda cls: cls


def _import(folder: str, width: int) -> tuple[torch.nn.Module, types.ModuleType]:
    """The published CLIP with random weights, and the published module `naclip`."""
    path = pathlib.Path(folder) / "clip/model.py"
    spec = importlib.util.spec_from_file_location("naclip_clip_model", path)
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    torch.manual_seed(0)
    net = code.CLIP(width, 224, 12, 768, 16, 77, 49408, 512, 8, 12).float().eval()
    with torch.no_grad():
        for name, parameter in net.visual.named_parameters():
            if parameter.dim() > 1:  # large enough that patches differ
                parameter.normal_(std=0.02 if "conv1" in name else 0.04)
    net.encode_text = lambda tokens: torch.ones(len(tokens), width)  # replaced by `words`
    sys.modules |= {
        "clip": _module(
            "clip",
            load=lambda *_, **__: (net, None),
            tokenize=lambda texts: torch.zeros(len(texts), 77, dtype=torch.long),
        ),
        "mmengine": _module("mmengine"),
        "mmengine.structures": _module("mmengine.structures", PixelData=types.SimpleNamespace),
        "mmseg": _module("mmseg"),
        "mmseg.models": _module("mmseg.models"),
        "mmseg.models.data_preprocessor": _module(
            "mmseg.models.data_preprocessor", SegDataPreProcessor=lambda **_: None
        ),
        "mmseg.models.segmentors": _module("mmseg.models.segmentors", BaseSegmentor=_Segmentor),
        "mmseg.registry": _module("mmseg.registry", MODELS=_Registry()),
    }
    sys.path.insert(0, folder)
    return net, importlib.import_module("naclip")


def _module(name: str, **members) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    return module
