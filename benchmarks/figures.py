"""The lines that benchmarks print."""

import json


def print_figure(
    metric: str, value: float, unit: str, goal: float | None = None, better: str = "higher"
) -> None:
    """Prints one figure as a line of JSON.

    Args:
        metric: what was measured.
        value: rounded to five digits.
        unit: of the value.
        goal: what it should reach, if anything.
        better: "higher" or "lower".
    """
    line = {
        "metric": metric,
        "value": float(f"{value:.5g}"),
        "unit": unit,
        "goal": goal,
        "better": better,
    }
    print_line(line)


def print_line(line: dict) -> None:
    """Prints a line of JSON, at once."""
    print(json.dumps(line), flush=True)
