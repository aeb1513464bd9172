"""A headless browser looks at a page.

Run it to take a picture of a report:
    python tests/demo/browser.py runs/demo/report.html docs/demo_report.png [WIDTH HEIGHT]
    python tests/demo/browser.py runs/demo/report.html#way docs/demo_way.png 1180 1370
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # the page must do without a network
    "--hide-scrollbars",
)


def find_browser() -> str:
    """Path of an installed Chromium or Chrome."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError("no Chromium or Chrome found; install one: apt-get install chromium")


def loaded_page(page: pathlib.Path) -> str:
    """The document's HTML after the browser has loaded it and run its scripts."""
    return _run(f"--dump-dom {page.resolve().as_uri()}".split())


def screenshot(
    page: pathlib.Path, picture: pathlib.Path, width: int, height: int, part: str = ""
) -> None:
    """Writes the top of the page as PNG, or only the section whose id is `part`."""
    with tempfile.TemporaryDirectory() as folder:
        shown = pathlib.Path(folder) / page.name
        style = (
            f"<style>main > :not(#{part}) {{ display: none }}</style></head>" if part else "</head>"
        )
        shown.write_text(page.read_text().replace("</head>", style, 1))
        _run(
            [
                f"--window-size={width},{height}",
                f"--screenshot={picture.resolve()}",
                shown.resolve().as_uri(),
            ]
        )


def _run(arguments: list[str]) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [find_browser(), *_QUIET, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"the browser failed:\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    source, target, *size = sys.argv[1:]
    source, _, part = source.partition("#")
    size = map(int, size or (1180, 1900))
    screenshot(pathlib.Path(source), pathlib.Path(target), *size, part)
