"""The demo's report: a self-contained page, a JSON file and a table."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
from etils import epath

from cocu_jax.demo import pictures
from cocu_jax.demo.charts import Line, line_chart
from cocu_jax.demo.samples import CurationSample, SceneSample, WholeWay
from cocu_jax.demo.summary import (
    RUN_TITLES,
    mean,
    percent,
    summarise_curation,
    summarise_difference,
    summarise_runs,
    terminal_table,
)

_FOLDER = epath.resource_path("cocu_jax") / "demo"
_USED = 3  # concepts that a training sample draws; the report marks the best ones
_NAMED = 4  # classes named below a segmentation


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of the report.

    Attributes:
        classes: class names in label order.
        stuff: those that are backgrounds.
        runs: `caption`, `cocu`, `complete` -> figures of every seed, see `measure.measure_run`.
        dense_clip: figures of every seed of the demo's own CLIP, read patch by patch.
        curation: figures of every seed, see `curation_quality.curation_quality`.
        logs: the runs and `clip` -> lines of `metrics.jsonl` of every seed.
        scenes: segmented scenes of the first seed.
        curations: curated scenes of the first seed.
        way: one training scene from its caption to its labels, first seed.
        omitted: declared probability that a caption leaves out one of the `things`, of the `stuff`.
        seconds: stage -> how long it took.
        settings: the demo's config, nested.
        machine: what it ran on, one line.
        credit: whom the artwork is owed to.
    """

    classes: Sequence[str]
    stuff: Sequence[str]
    runs: Mapping[str, Sequence[Mapping]]
    dense_clip: Sequence[Mapping]
    curation: Sequence[Mapping]
    logs: Mapping[str, Sequence[Sequence[Mapping]]]
    scenes: Sequence[SceneSample]
    curations: Sequence[CurationSample]
    way: WholeWay
    omitted: Mapping[str, float]
    seconds: Mapping[str, float]
    settings: Mapping
    machine: str
    credit: str


def write_report(workdir: epath.PathLike, results: Results) -> str:
    """Writes `report.html` and `report.json`; returns the table for the terminal."""
    summary = summarise(results)
    folder = epath.Path(workdir)
    (folder / "report.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "report.html").write_text(_render(results, summary))
    return terminal_table(summary)


def summarise(results: Results) -> dict:
    """The figures, ready for JSON: means over seeds, in [0, 1]; None where there is no number."""
    runs = summarise_runs(results.runs, results.stuff)
    dense = summarise_runs({"dense_clip": results.dense_clip}, results.stuff)
    summary = {
        "runs": runs,
        **dense,
        "difference": summarise_difference(results.runs),
        "constant_miou": mean([scores["constant_miou"] for scores in runs.values()]),
        "curation": summarise_curation(results.curation),
        "omission_declared": dict(results.omitted),
        "seeds": max(map(len, results.runs.values())),
        "seconds": dict(results.seconds),
        "machine": results.machine,
        "settings": results.settings,
    }
    return _without_nan(summary)


def _without_nan(value):
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _render(results: Results, summary: dict) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(_FOLDER)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": _duration, "png": pictures.png_uri}
    colours = pictures.class_colours(results.classes, results.stuff)
    template = environment.get_template("report.html.j2")
    return template.render(
        results=results,
        summary=summary,
        titles=RUN_TITLES,
        used=_USED,
        scale=max(
            iou or 0 for scores in summary["runs"].values() for iou in scores["iou"].values()
        ),
        charts=_charts(results.logs),
        scenes=[_scene_pictures(scene, results.classes, colours) for scene in results.scenes],
        way=_scene_pictures(results.way.scene, results.classes, colours),
        legend=[
            (name, pictures.css_colour(colour), name in results.stuff)
            for name, colour in zip(results.classes, colours, strict=True)
        ],
        settings=sorted(_flatten(results.settings)),
    )


def _scene_pictures(scene: SceneSample, classes: Sequence[str], colours: np.ndarray) -> dict:
    """Pictures of one scene, each with the classes (name, colour) that cover most of it."""

    def labelled(labels: np.ndarray) -> dict:
        present, pixels = np.unique(labels, return_counts=True)
        largest = present[np.argsort(-pixels, kind="stable")][:_NAMED].tolist()
        names = [(classes[i], pictures.css_colour(colours[i])) for i in largest]
        return {"uri": pictures.map_uri(labels, colours), "classes": names}

    def grouped(groups: np.ndarray) -> dict:
        tints = pictures.group_colours(int(groups.max()) + 1)
        return {"uri": pictures.map_uri(groups, tints), "count": len(np.unique(groups))}

    return {
        "image": pictures.image_uri(scene.image),
        "truth": labelled(scene.truth),
        "labels": {run: labelled(labels) for run, labels in scene.labels.items()},
        "groups": {run: grouped(groups) for run, groups in scene.groups.items()},
    }


def _charts(logs: Mapping[str, Sequence[Sequence[Mapping]]]) -> list[dict]:
    """Title and SVG of every chart that has something to show."""
    runs = {run: seeds for run, seeds in logs.items() if run in RUN_TITLES}
    clip = {run: seeds for run, seeds in logs.items() if run == "clip"}
    wanted = (
        ("Image–caption loss", runs, "loss/contrastive", 1),
        ("Image–concepts loss", runs, "loss/multi_label", 1),
        ("mIoU on the selection split, %", runs, "evaluation/miou", 100),
        ("CLIP: image–caption loss", clip, "loss/contrastive", 1),
    )
    charts = []
    for title, shown, metric, scale in wanted:
        lines = _lines(shown, metric, scale)
        if svg := line_chart(lines, title, "steps"):
            charts.append({"title": title, "svg": svg})
    return charts


def _lines(
    logs: Mapping[str, Sequence[Sequence[Mapping]]], metric: str, scale: float
) -> list[Line]:
    """A thick line for the mean of every run, thin ones for its seeds if there are several."""
    thin, thick = [], []
    for run, seeds in logs.items():
        curves = [
            {line["step"]: scale * line[metric] for line in lines if line.get(metric) is not None}
            for lines in seeds
        ]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)) if curves else ())
        thick.append(Line(run, [(step, mean([curve[step] for curve in curves])) for step in steps]))
        if len(curves) > 1:
            thin += [Line(run, sorted(curve.items()), thin=True) for curve in curves]
    return thin + thick


def _flatten(settings: Mapping, prefix: str = "") -> list[tuple[str, object]]:
    """Nested settings as (dotted name, value)."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def _duration(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
