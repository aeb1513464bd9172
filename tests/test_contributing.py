"""The guide for newcomers names files and functions that exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_the_reading_table_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| ([^|]+\?) \| ([^|]+) \|$", text, re.MULTILINE)
    assert len(rows) >= 12
    for question, answer in rows:
        folder, file = "", None
        for name in re.findall(r"`([^`]+)`", answer):
            if name.endswith(".py"):
                file = ROOT / (name if "/" in name else f"{folder}/{name}")
                folder = file.parent.relative_to(ROOT)
                assert file.exists(), (question, name)
            else:
                defined = rf"^\s*(def|class) {re.escape(name)}\b|^{re.escape(name)} ?[:=]"
                assert re.search(defined, file.read_text(), re.MULTILINE), (question, name)


def test_paths_in_the_guides_exist():
    for guide in ("CONTRIBUTING.md", "README.md"):
        text = (ROOT / guide).read_text()
        paths = re.findall(
            r"[`(]((?:cocu_jax|configs|data_prep|docs|eval|space|tests)/[\w./]+)", text
        )
        assert paths
        missing = [path for path in paths if not (ROOT / path.rstrip("/.")).exists()]
        assert not missing, (guide, missing)
