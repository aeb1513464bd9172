"""The table of all benchmarks, and one of every benchmark's classes."""

from collections.abc import Mapping

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
    "All figures in %. Group bound: mIoU if every group had the best name; "
    "constant: mIoU of calling every pixel the most frequent class."
)


def format_results(results: Mapping[str, dict]) -> tuple[str, str]:
    """Results by benchmark -> text for the terminal, and a Markdown document with all classes.

    Args:
        results: figures by benchmark, see `job`.
    """
    terminal, markdown = [], ["# Zero-shot evaluation", ""]
    for columns in (_SEGMENTATION, _CLASSIFICATION):
        chosen = [figures for figures in results.values() if next(iter(columns)) in figures]
        if not chosen:
            continue
        header = ["benchmark", "images", *columns.values()]
        rows = [
            [_title(figures), _images(figures), *(percent(figures[key]) for key in columns)]
            for figures in chosen
        ]
        terminal += [terminal_table(header, rows), ""]
        markdown += [markdown_table(header, rows), ""]
    terminal.append(_EXPLANATION)
    markdown += [_EXPLANATION, ""]
    if any(figures["images"] != figures["official_images"] for figures in results.values()):
        note = "* not the whole official split: not to be compared with published figures."
        terminal.append(note)
        markdown += [note.replace("*", r"\*"), ""]
    for figures in results.values():
        if "iou" in figures:
            markdown += [f"## {figures['title']}", "", _classes(figures), ""]
    return "\n".join(terminal), "\n".join(markdown)


def _title(figures: dict) -> str:
    """The benchmark's title, and what differs from its published settings."""
    changes = [f"{name}={value}" for name, value in figures.get("changes", {}).items()]
    return f"{figures['title']} ({', '.join(changes)})" if changes else figures["title"]


def _images(figures: dict) -> str:
    return f"{figures['images']:,}" + "*" * (figures["images"] != figures["official_images"])


def _classes(figures: dict) -> str:
    rows = [
        [name, percent(value), percent(figures["accuracy"][name])]
        for name, value in figures["iou"].items()
    ]
    return markdown_table(["class", "IoU", "accuracy"], rows)
