"""What became of the pairs of a raw corpus: kept, or dropped for which reason."""

import collections
import dataclasses
import json
from collections.abc import Sequence

from etils import epath

from cocu_jax.files import write_file


@dataclasses.dataclass
class UnitReport:
    """What became of a unit's pairs.

    Attributes:
        unit: its file.
        kept: number of examples written.
        captions: number of their captions.
        bytes: their size.
        dropped: number of pairs dropped, by reason.
        places: where each reason was met first.
        damage: why the rest of the unit could not be read, or "".
    """

    unit: str
    kept: int = 0
    captions: int = 0
    bytes: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    damage: str = ""

    @classmethod
    def load(cls, path: epath.Path) -> "UnitReport":
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def drop(self, reason: str, place: str, count: int = 1) -> None:
        """Counts pairs."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.places.setdefault(reason, place)

    def save(self, path: epath.Path) -> None:
        """Writes the report as JSON."""
        write_file(path, json.dumps(dataclasses.asdict(self)))


def totals(reports: Sequence[UnitReport]) -> dict:
    """Sums over all units, and the damaged ones by name."""
    dropped, places = collections.Counter(), {}
    for report in reports:
        dropped.update(report.dropped)
        places = report.places | places
    return {
        "units": len(reports),
        "kept": sum(report.kept for report in reports),
        "captions": sum(report.captions for report in reports),
        "bytes": sum(report.bytes for report in reports),
        "dropped": dict(dropped.most_common()),
        "first dropped": places,
        "damaged units": [report.damage for report in reports if report.damage],
    }


def summary(reports: Sequence[UnitReport]) -> str:
    """The totals in one line."""
    total = totals(reports)
    dropped = ", ".join(
        f"{count:,} {reason} (first: {total['first dropped'][reason]})"
        for reason, count in total["dropped"].items()
    )
    damaged = len(total["damaged units"])
    line = (
        f"{total['kept']:,} images kept ({total['bytes'] / 1e6:,.1f} MB); dropped: {dropped or '0'}"
    )
    if damaged:
        first = total["damaged units"][0]
        line += f"; {damaged} of {total['units']} files damaged (first: {first})"
    return line
