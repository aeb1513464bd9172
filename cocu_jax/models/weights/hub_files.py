"""Writes the files of a model other than weights: tokenizer, image processor and model card."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from cocu_jax.models.text import TextConfig
from cocu_jax.models.tokenizer import EOT, merges, vocabulary
from cocu_jax.models.weights.image_processing import ImageProcessing, write_processing
from cocu_jax.models.weights.source import PREPROCESSOR

_START, _END = "<|startoftext|>", "<|endoftext|>"


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in the style of those on the hub."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_hub_files(
    folder: pathlib.Path,
    architecture: str,
    text: TextConfig,
    processing: ImageProcessing,
    tokenizer: Mapping[str, bytes],
) -> None:
    """Writes the files for transformers' `AutoProcessor` and for the model's page on the hub.

    Args:
        folder: folder of the model.
        architecture: transformers' name of the model's class.
        text: settings of the text tower.
        processing: preparation of images.
        tokenizer: tokenizer files that came with the model; if there are none and the vocabulary
            has the size of CLIP's, CLIP's are written.
    """
    write_json(folder / PREPROCESSOR, write_processing(processing))
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)
    if not tokenizer and text.vocab_size == EOT + 1:
        _write_tokenizer(folder, text.context_length)
    (folder / "README.md").write_text(_card(architecture), encoding="utf-8")


def _write_tokenizer(folder: pathlib.Path, context_length: int) -> None:
    write_json(folder / "vocab.json", vocabulary())
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    specials = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    write_json(folder / "special_tokens_map.json", specials)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": context_length,
            "do_lower_case": True,
            **specials,
        },
    )


def _card(architecture: str) -> str:
    segmentation = architecture == "GroupViTModel"
    task = "open-vocabulary semantic segmentation" if segmentation else "image and text embedding"
    return f"""---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- {"groupvit" if segmentation else "clip"}
- cocu-jax
---

# {architecture} exported by cocu-jax

A model for {task}. Describe here its training data, its results and its licence.

```python
from transformers import AutoProcessor, {architecture}

model = {architecture}.from_pretrained("this/repository")
processor = AutoProcessor.from_pretrained("this/repository")
```
"""
