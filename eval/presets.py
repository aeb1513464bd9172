"""Protocols of papers, so that methods can be compared under the same settings.

groupvit  the settings of each benchmark in `eval/benchmarks.json` (GroupViT, arXiv 2202.11094)
tcl       short side 448, windows of 448 every 224; background threshold 0.5, with refinement 0.4
          (TCL, arXiv 2212.00785)
naclip    short side 336, for Cityscapes 560; windows of 224 every 112, but VOC images whole;
          80 templates; logit scale 40; background threshold 0.1; refinement with neighbours at
          distances of 8 and 16 (NACLIP, arXiv 2404.08181, and the settings of its repository).
          The synonyms are in class-name files of that repository, which `--config.class_names`
          reads unchanged.
"""

import dataclasses
from typing import Any

from cocu_jax.errors import UserError
from eval.protocol import Protocol

PRESETS = ("groupvit", "tcl", "naclip")


def preset(name: str, benchmark: str, protocol: Protocol, pamr: bool = False) -> Protocol:
    """The protocol of a benchmark with the sizes, thresholds and prompts of a preset.

    Args:
        name: one of `PRESETS`.
        benchmark: name of the benchmark.
        protocol: the benchmark's own protocol.
        pamr: whether to refine labels along the colour edges of the image.

    Raises:
        UserError: there is no such preset.
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
