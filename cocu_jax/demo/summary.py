"""The figures of the demo for `report.json` and the terminal."""

import math
import statistics
from collections.abc import Mapping, Sequence

RUN_TITLES = {
    "caption": "Captions only",
    "cocu": "CoCu",
    "complete": "Complete captions",
    "dense_clip": "The CLIP itself",
}
_SCORES = ("miou", "bound_miou", "constant_miou", "pixel_accuracy")


def summarise_runs(
    runs: Mapping[str, Sequence[Mapping]], stuff: Sequence[str]
) -> dict[str, dict[str, object]]:
    """Means over seeds, and the seeds beside.

    Args:
        runs: run -> figures of every seed, see `measure.measure_run`; all in [0, 1].
        stuff: classes that are backgrounds.

    Returns:
        Run -> its scores; `per_seed` mIoU and their `range` (largest minus smallest); `iou` of each
        class; `miou_things` and `miou_stuff`. Classes that never occur are None.
    """
    summary = {}
    for run, seeds in runs.items():
        names = seeds[0]["iou"].keys()
        iou = {name: mean([seed["iou"][name] for seed in seeds]) for name in names}
        per_seed = [seed["miou"] for seed in seeds]
        summary[run] = {score: mean([seed[score] for seed in seeds]) for score in _SCORES} | {
            "per_seed": per_seed,
            "range": max(per_seed) - min(per_seed),
            "miou_things": mean([iou[name] for name in names if name not in stuff]),
            "miou_stuff": mean([iou[name] for name in names if name in stuff]),
            "iou": iou,
        }
    return summary


def summarise_difference(runs: Mapping[str, Sequence[Mapping]]) -> dict[str, object]:
    """CoCu's mIoU minus that of captions only, in the mean and by seed."""
    pairs = zip(runs["cocu"], runs["caption"], strict=True)
    per_seed = [cocu["miou"] - caption["miou"] for cocu, caption in pairs]
    return {"mean": mean(per_seed), "per_seed": per_seed}


def summarise_curation(seeds: Sequence[Mapping[str, Mapping]]) -> dict[str, object]:
    """Mean over seeds of `curation_quality`; the curated figures stand at the top."""
    means = {
        part: {name: mean([seed[part][name] for seed in seeds]) for name in seeds[0][part]}
        for part in seeds[0]
    }
    curated = means.pop("curated")
    return curated | means | {"per_seed": [seed["curated"] for seed in seeds]}


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are numbers; None without any."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.fmean(known) if known else None


def percent(value: float | None, signed: bool = False) -> str:
    """A share as a percentage with one decimal; a dash if there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:{'+' if signed else ''}.1f}"


def terminal_table(summary: Mapping) -> str:
    """The summary of `report.summarise` as lines for a terminal, in percent."""
    heads = ("mIoU", "things", "stuff", "pixels", "bound")
    lines = [f"{'':<22}" + "".join(f"{head:>8}" for head in heads) + "   seeds"]
    for run, scores in (summary["runs"] | {"dense_clip": summary["dense_clip"]}).items():
        shown = ("miou", "miou_things", "miou_stuff", "pixel_accuracy", "bound_miou")
        cells = "".join(f"{percent(scores[name]):>8}" for name in shown)
        seeds = " ".join(percent(value) for value in scores["per_seed"])
        lines.append(f"{RUN_TITLES.get(run, run):<22}{cells}   {seeds}")
    lines.append(f"{'Constant prediction':<22}{percent(summary['constant_miou']):>8}")
    difference = summary["difference"]
    seeds = " ".join(percent(value, signed=True) for value in difference["per_seed"])
    ahead = percent(difference["mean"], signed=True)
    lines.append(f"{'CoCu - captions only':<22}{ahead:>8}{'':>32}   {seeds}")
    curated = summary["curation"]
    lines += [
        "",
        f"{'Concepts of a scene':<22}{'prec.':>8}{'recall':>8}{'stuff':>8}{'omitted stuff':>16}",
    ]
    for title, scores in (("Captions only", curated["caption"]), ("Curated top 3", curated)):
        cells = "".join(f"{percent(scores[n]):>8}" for n in ("precision", "recall", "recall_stuff"))
        lines.append(f"{title:<22}{cells}{percent(scores['recall_omitted_stuff']):>16}")
    return "\n".join(lines)
