"""Protocols of other papers, for methods to be compared under one of them.

groupvit  each benchmark's own settings, `eval/benchmarks.json` (GroupViT, arXiv 2202.11094)
tcl       448 pixels, windows of 448 every 224 (TCL, arXiv 2212.00785); background below 0.5,
          with refinement below 0.4
naclip    336 pixels, Cityscapes 560, windows of 224 every 112, VOC's images whole, 80 templates,
          similarities times 40, background below 0.1, refinement at distances of 8 and 16
          (NACLIP, arXiv 2404.08181, and the settings of its repository). Its synonyms are
          class-name files of its repository, which `--config.class_names` reads as they are.
"""

import dataclasses
from typing import Any

from cocu_jax.errors import UserError
from eval.protocol import Protocol

PRESETS = ("groupvit", "tcl", "naclip")


def preset(name: str, benchmark: str, protocol: Protocol, pamr: bool = False) -> Protocol:
    """A benchmark's protocol with the sizes, thresholds and prompts of a preset.

    Args:
        name: one of `PRESETS`.
        benchmark: name of the benchmark.
        protocol: its own protocol.
        pamr: refine labels by the colours of the image.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"config.protocol={name!r}: choose one of {', '.join(PRESETS)}")
    changes: dict[str, Any] = {"pamr": pamr}
    threshold = None
    if name == "tcl":
        changes |= {"crop": 448, "stride": 224, "resize_long_short": (2048, 448)}
        threshold = 0.4 if pamr else 0.5
    elif name == "naclip":
        short = 560 if benchmark == "cityscapes" else 336
        changes |= {"crop": 224, "stride": 112, "resize_long_short": (2048, short)}
        changes |= {"templates": "full", "logit_scale": 40.0, "pamr_dilations": (8, 16)}
        if benchmark in ("voc", "voc20"):
            changes["mode"] = "whole"
        threshold = 0.1
    if threshold is not None and protocol.has_background:
        changes["bg_thresh"] = threshold
    return dataclasses.replace(protocol, **changes)
