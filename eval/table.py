"""Tables for the terminal and in Markdown."""

from collections.abc import Sequence


def percent(value: float | None) -> str:
    """Formats a share as a percentage with one decimal; None becomes a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table with aligned columns: the first is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table: the first column is text, the others are numbers."""
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, marks, *rows))
