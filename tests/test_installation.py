"""The wheel holds what it should, and its commands run outside the repository."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest
from flax import nnx

from benchmarks.installed_package import copy_sources
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.huggingface import save_groupvit

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = "cocu_jax", "configs", "data_prep", "eval"
PICTURE = b"P6 64 48 255\n" + bytes(range(256)) * 36  # 64 x 48 pixels, PPM


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    copy_sources(source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source]
    subprocess.run(command, check=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    target = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(target)  # which is how pip installs a wheel of Python alone
    return target


def test_wheel_holds_the_four_packages_whole_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    listing = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listing.stdout.split() if (ROOT / name).is_file()}

    packed = {name for name in names if not re.match(r"[^/]*\.dist-info/", name)}

    assert packed >= tracked
    assert {name.split("/")[0] for name in packed} == set(PACKAGES)


def test_every_requirement_of_the_wheel_is_the_readers_too(wheel):
    metadata = zipfile.ZipFile(wheel).read("cocu_jax-0.1.0.dist-info/METADATA").decode()
    required = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.MULTILINE)
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line.split("#")[0].strip() for line in lines]

    assert len(required) == len([line for line in listed if line])


def test_every_import_is_a_requirement():
    """Compares the imports with `requirements.txt`, by distribution."""
    requirements = (ROOT / "requirements.txt").read_text().lower()
    named = set(re.findall(r"^[a-z0-9_-]+", requirements, re.MULTILINE))
    distributions = importlib.metadata.packages_distributions()
    optional = {"nltk", "torch", *_extras()}
    imports = set()
    for package in (*PACKAGES, "main.py"):
        files = [ROOT / package] if package.endswith(".py") else (ROOT / package).rglob("*.py")
        for file in files:
            found = re.findall(r"^\s*(?:import|from) (\w+)", file.read_text(), re.MULTILINE)
            imports |= {name for name in found if name in distributions}

    missing = {
        name
        for name in imports - optional
        if not {_normal(d) for d in distributions[name]} & {_normal(n) for n in named}
    }

    assert missing - {"markupsafe"} == set()  # a part of jinja2's interface


def _extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r'"([a-z_]+)', section)) - {"jax"}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.lower())


def _cocu(installed: pathlib.Path, folder: pathlib.Path, *arguments: str):
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "cocu_jax", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_overview_and_unknown_command(installed, tmp_path):
    overview = _cocu(installed, tmp_path, "--help")
    unknown = _cocu(installed, tmp_path, "trian")

    assert overview.returncode == 0
    for command in ("segment", "app", "prepare", "weights", "run"):
        assert re.search(rf"^  {command} ", overview.stdout, re.MULTILINE)
    assert unknown.returncode == 2
    assert "no command 'trian'" in unknown.stderr


def test_jobs_find_the_installed_configs(installed, tmp_path):
    ran = _cocu(installed, tmp_path, "run", "--config=configs/curate.py", "--workdir=run")

    assert ran.returncode == 2
    assert "config.corpus.directory is empty" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1  # nothing of TensorFlow's own
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_fresh_environment_segments_converts_and_prepares(wheel, tmp_path):
    model = tmp_path / "model"
    config = GroupViTConfig(
        image_size=32,
        patch_size=8,
        width=32,
        heads=2,
        depths=(1, 1, 1),
        groups=(8, 4),
        projection_hidden=32,
        projection_dim=16,
        text=TextConfig(width=16, heads=2, layers=1),
    )
    save_groupvit(GroupViT(config, rngs=nnx.Rngs(0)), str(model))
    (tmp_path / "photo.ppm").write_bytes(PICTURE)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv" / "bin"
    subprocess.run([scripts / "pip", "install", "--quiet", wheel], check=True, timeout=1200)
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def cocu(*arguments: str) -> str:
        command = [scripts / "cocu", *arguments]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    photo = "../photo.ppm", "--classes", "dog, sky", "--checkpoint", "../model"
    cocu("segment", *photo, "--output", "masks")
    cocu("weights", "export", "../model", "model.pth")
    cocu("weights", "import", "model.pth", "again")
    helped = [cocu("prepare", command, "--help") for command in ("image_text", "segmentation")]

    assert (folder / "masks" / "photo_overlay.png").exists()
    assert (folder / "again" / "model.safetensors").exists()
    assert all("--data_dir" in text for text in helped)
