"""The repository's packages outside the repository, as those who install them have them."""

import pathlib
import shutil
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[1]


def copy_sources(target: pathlib.Path) -> None:
    """Copies the repository's files into a folder: building leaves files beside the sources."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listing.stdout.splitlines():
        if (_ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_ROOT / name, target / name)


def install_package(target: pathlib.Path) -> None:
    """Installs the packages into a folder, as `pip install .` would."""
    source = target.with_name("source")
    copy_sources(source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, target, source], check=True)
    shutil.rmtree(source)
