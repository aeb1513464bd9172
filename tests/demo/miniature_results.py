"""Made-up results of the demo, for looking at the report without training anything."""

import io

import numpy as np
from PIL import Image

from cocu_jax.demo.report import Results
from cocu_jax.demo.samples import CurationSample, RankedConcept, SceneSample, WholeWay

CLASSES = ("car", "tree", "sky", "grass <&>")
STUFF = ("sky", "grass <&>")
RUNS = ("caption", "cocu", "complete")


def miniature_results(seeds: int = 3) -> Results:
    """Results of `seeds` seeds; the third class never occurs, CoCu is 0.1 ahead on every seed."""
    rng = np.random.default_rng(0)
    return Results(
        classes=CLASSES,
        stuff=STUFF,
        runs={run: [_run(level, seed) for seed in range(seeds)] for level, run in enumerate(RUNS)},
        dense_clip=[_run(3, seed) | {"bound_miou": None} for seed in range(seeds)],
        curation=[_curation(seed) for seed in range(seeds)],
        logs={run: [_log(rng) for _ in range(seeds)] for run in ("clip", *RUNS)},
        scenes=[_scene(rng) for _ in range(3)],
        curations=[_curated(rng) for _ in range(3)],
        way=WholeWay(_curated(rng), [["a sketch of a <sky>", "a car."], ["a car."]], _scene(rng)),
        omitted={"things": 0.1, "stuff": 0.95},
        seconds={"scenes": 42.0, "seed0/clip": 125.0, "seed0/cocu": 4000.0},
        settings={"seeds": seeds, "clip": {"model": {"width": 64}}},
        machine="2 CPU cores",
        credit="Drawn by OpenMoji, CC BY-SA 4.0",
    )


def _run(level: int, seed: int) -> dict:
    iou = 0.2 + 0.1 * level + 0.01 * seed
    return {
        "miou": iou,
        "bound_miou": 0.5,
        "constant_miou": 0.05,
        "pixel_accuracy": 0.4,
        "iou": {"car": iou, "tree": iou + 0.02, "sky": None, "grass <&>": iou - 0.02},
    }


def _curation(seed: int) -> dict:
    scores = dict.fromkeys(
        (
            "precision",
            "precision_bound",
            "recall",
            "recall_things",
            "recall_stuff",
            "recall_omitted",
            "recall_omitted_stuff",
        )
    )
    return {
        "curated": {name: 0.7 + 0.01 * seed for name in scores},
        "caption": {name: 0.3 for name in scores} | {"recall_omitted": float("nan")},
        "omitted": {"things": 0.05, "stuff": 0.95},
    }


def _log(rng: np.random.Generator) -> list[dict]:
    losses = np.sort(rng.uniform(0, 4, size=30))[::-1].tolist()
    lines = [
        {"step": 10 * (i + 1), "loss/contrastive": loss, "loss/multi_label": loss / 2}
        for i, loss in enumerate(losses)
    ]
    return [*lines, {"step": 300, "evaluation/miou": 0.2}, {"step": 310, "loss/contrastive": None}]


def _scene(rng: np.random.Generator) -> SceneSample:
    def blocks(high: int) -> np.ndarray:
        return np.kron(rng.integers(0, high, size=(4, 4)), np.ones((8, 8), int))

    return SceneSample(
        image=rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8),
        truth=blocks(4),
        labels={run: blocks(4) for run in RUNS},
        groups={run: blocks(8) for run in RUNS},
    )


def _curated(rng: np.random.Generator) -> CurationSample:
    return CurationSample(
        image=_png(rng),
        caption='a "car" & <tree>',
        shown=("car", "sky"),
        neighbours=tuple((_png(rng), "a photo of the sky") for _ in range(4)),
        concepts=(
            RankedConcept("sky", 2.1, in_caption=False, in_scene=True, cluster=1),
            RankedConcept("car", 2.0, in_caption=True, in_scene=True, cluster=1),
            RankedConcept("tree", 1.9, in_caption=False, in_scene=False, cluster=-1),
            RankedConcept("grass", 1.8, in_caption=False, in_scene=False, cluster=-1),
        ),
    )


def _png(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
