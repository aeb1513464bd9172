import io

import numpy as np
import pytest
from drawn_weights import draw_weights
from miniature_corpus import write_corpus
from PIL import Image, ImageDraw

from cocu_jax.curation import job
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.huggingface import save_clip, save_groupvit
from configs.curate import get_config

TEXT = TextConfig(width=16, heads=2, layers=1)


@pytest.fixture(scope="session")
def groupvit(tmp_path_factory):
    """A GroupViT of random weights."""
    folder = tmp_path_factory.mktemp("models") / "groupvit"
    config = GroupViTConfig(
        image_size=32, patch_size=8, width=32, heads=2, depths=(1, 1, 1), groups=(8, 4),
        projection_hidden=32, projection_dim=16, text=TEXT,
    )  # fmt: skip
    save_groupvit(draw_weights(lambda keys: GroupViT(config, rngs=keys)), str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A CLIP of random weights."""
    folder = tmp_path_factory.mktemp("models") / "clip"
    config = CLIPConfig(
        image_size=16, patch_size=8, vision_width=32, vision_layers=1, vision_heads=2,
        projection_dim=24, text=TEXT,
    )  # fmt: skip
    save_clip(draw_weights(lambda keys: CLIP(config, rngs=keys)), str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def curated(clip, tmp_path_factory):
    """Work directory of a curation of 51 images in five shards."""
    folder = tmp_path_factory.mktemp("curation")
    config = get_config()
    fields = {
        "corpus.directory": write_corpus(folder, (13, 7, 1, 20, 10)),
        "clip": clip,
        "neighbours": 8,
        "capacity": 8,
        "batch_size": 17,
        "page_images": 0,
    }
    config.update_from_flattened_dict(fields)
    job.curate(config, str(folder / "run"))
    return str(folder / "run")


@pytest.fixture
def photo(tmp_path):
    """A JPEG of 64 x 48 with an EXIF rotation by 90 degrees and GPS coordinates."""
    image = Image.new("RGB", (64, 48), "skyblue")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill="brown")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 15.0)
    image.save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """Files that are not photos, each with a part of the expected message."""
    folder = tmp_path_factory.mktemp("hostile")
    bomb = io.BytesIO()
    Image.fromarray(np.zeros((9000, 9000), bool)).save(bomb, "PNG")  # 81 million pixels in 10 kB
    script = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    contents = {
        "bomb.png": (bomb.getvalue(), "more than 64,000,000 pixels"),
        "words.txt": (b"dog, grass, sky", "not an image"),
        "drawing.svg": (script, "not an image"),
        "cut.png": (bomb.getvalue()[:200], "pixels"),
        "empty.jpg": (b"", "not an image"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {folder / name: said for name, (_, said) in contents.items()}
