"""Tables of the results of all benchmarks, and of the classes of each benchmark."""

from collections.abc import Mapping, Sequence

from eval.benchmarks import benchmarks
from eval.published import find_published, published
from eval.table import markdown_table, percent, terminal_table

_SEGMENTATION = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel acc",
    "class_accuracy": "class acc",
    "group_bound_miou": "group bound",
    "constant_miou": "constant",
}
_CLASSIFICATION = {"top1": "top-1", "top5": "top-5"}
_EXPLANATION = (
    "All figures in %. Group bound: mIoU if every group had its best name; "
    "constant: mIoU of predicting the most frequent class everywhere."
)


def format_results(results: Mapping[str, dict]) -> tuple[str, str]:
    """Formats results as text for the terminal, and as a Markdown document with all classes.

    Args:
        results: figures by name, see `eval.job`.
    """
    terminal, markdown = [], ["# Zero-shot evaluation", ""]
    several = len({figures.get("checkpoint") for figures in results.values()}) > 1
    for columns in (_SEGMENTATION, _CLASSIFICATION):
        chosen = [figures for figures in results.values() if next(iter(columns)) in figures]
        if not chosen:
            continue
        header = ["benchmark", "images", *columns.values()]
        rows = [
            [
                _title(figures, several),
                _images(figures),
                *(percent(figures[key]) for key in columns),
            ]
            for figures in chosen
        ]
        terminal += [terminal_table(header, rows), ""]
        markdown += [markdown_table(header, rows), ""]
        if columns is _SEGMENTATION:
            markdown += _side_by_side(chosen)
    terminal.append(_EXPLANATION)
    markdown += [_EXPLANATION, ""]
    if any(map(_incomplete, results.values())):
        note = "* not the whole official split: do not compare with published figures."
        terminal.append(note)
        markdown += [note.replace("*", r"\*"), ""]
    for figures in results.values():
        if "iou" in figures:
            markdown += [f"## {_title(figures, several)}", "", _classes(figures), ""]
    return "\n".join(terminal), "\n".join(markdown)


def _side_by_side(results: Sequence[dict]) -> list[str]:
    """Lines of a table of methods (rows) by benchmarks, with published figures in brackets.

    There are no lines for a single method without published figures.
    """
    methods: dict[str, dict[str, dict]] = {}
    for figures in results:
        if "checkpoint" in figures:
            methods.setdefault(_method(figures), {})[_column(figures)] = figures
    found = [find_published(f) for own in methods.values() for f in own.values()]
    if len(methods) < 2 and not any(found):
        return []
    names = dict.fromkeys([*benchmarks(), *map(_column, results)])
    columns = [name for name in names if any(name in own for own in methods.values())]
    rows = [
        [method, *(_with_published(own.get(name), name) for name in columns)]
        for method, own in methods.items()
    ]
    sources = dict.fromkeys(row["source"] for row in found if row)
    note = "mIoU in %; in brackets the published figure of the same method and protocol."
    listed = [f"{name}: {published()['sources'][name]}." for name in sources]
    return [
        "## Methods side by side",
        "",
        markdown_table(["method", *columns], rows),
        "",
        " ".join([note, *listed]),
        "",
    ]


def _column(figures: dict) -> str:
    """Name of the benchmark, or title of a dataset of one's own."""
    return figures.get("benchmark") or figures["title"]


def _with_published(figures: dict | None, benchmark: str) -> str:
    if figures is None:
        return ""
    row = find_published(figures)
    known = row["miou"].get(benchmark) if row else None
    ours = percent(figures["miou"]) + "*" * _incomplete(figures)
    return ours if known is None else f"{ours} ({known:.1f})"


def _method(figures: dict) -> str:
    """The checkpoint, the method of a CLIP, and all changed settings."""
    dense = (figures.get("settings") or {}).get("dense")
    changes = ({"dense": dense} if dense else {}) | figures.get("changes", {})
    return ", ".join([figures["checkpoint"], *(f"{k}={v}" for k, v in changes.items())])


def _title(figures: dict, with_checkpoint: bool) -> str:
    """Title of the benchmark, and its changed settings."""
    changes = [f"{name}={value}" for name, value in figures.get("changes", {}).items()]
    if with_checkpoint and "checkpoint" in figures:
        changes = [figures["checkpoint"], *changes]
    return f"{figures['title']} ({', '.join(changes)})" if changes else figures["title"]


def _incomplete(figures: dict) -> bool:
    return figures["images"] != figures["official_images"]


def _images(figures: dict) -> str:
    return f"{figures['images']:,}" + "*" * _incomplete(figures)


def _classes(figures: dict) -> str:
    rows = [
        [name, percent(value), percent(figures["accuracy"][name])]
        for name, value in figures["iou"].items()
    ]
    return markdown_table(["class", "IoU", "accuracy"], rows)
