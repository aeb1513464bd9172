"""The finished stages of the demo in one JSON file, for reruns and for the report."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator

from etils import epath


class Ledger:
    """Stages with their seconds, results and whether they finished.

    Attributes:
        entries: stage name -> `{"finished": bool, "seconds": float, …}`.
    """

    def __init__(self, file: epath.PathLike):
        self._file = epath.Path(file)
        self.entries: dict[str, dict] = _read(self._file)

    def finished(self, stage: str) -> bool:
        """Whether the stage ran to its end."""
        return self.entries.get(stage, {}).get("finished", False)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict]:
        """Runs a stage: yields its entry to fill in, adds up its seconds, marks it finished.

        The seconds of interrupted attempts count; those of reruns of a finished stage do not.
        """
        entry = self.entries.setdefault(name, {"finished": False, "seconds": 0.0})
        if not entry["finished"]:
            print(f"── {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            yield entry
            seconds, finished = time.monotonic() - start, True
        except BaseException:
            seconds, finished = time.monotonic() - start, False
            raise
        finally:
            if not entry["finished"]:
                entry["seconds"] += seconds
                entry["finished"] = finished
            self._save()

    def _save(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self.entries, indent=2))
        partial.replace(self._file)


def _read(file: epath.Path) -> dict[str, dict]:
    return json.loads(file.read_text()) if file.exists() else {}
