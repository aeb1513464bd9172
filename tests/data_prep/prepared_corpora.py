"""Small corpora prepared through the library, and what is in them."""

import json
import signal
import subprocess
import time

from etils import epath

from cocu_jax.input.corpus import open_corpus, read_shard
from data_prep.gallery.gallery import Gallery
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.prepare import Preparation, prepare_image_text
from data_prep.image_text.units import Recipe

GALLERY = Gallery.build(["dog", "cat", "horse", "person"])


def prepare(tmp_path, *sources, recipe=None, **options) -> str:
    recipe = recipe or Recipe(ImageRecipe(), GALLERY)
    preparation = Preparation(recipe=recipe, sources=tuple(map(str, sources)), **options)
    return prepare_image_text("custom", preparation, str(tmp_path / "tfds"))


def examples(directory: str, split="train") -> list[dict]:
    corpus = open_corpus(directory, split)
    return [
        example
        for shard in range(corpus.num_shards)
        for example in read_shard(corpus, shard).as_numpy_iterator()
    ]


def report(directory: str) -> dict:
    return json.loads((epath.Path(directory) / "report.json").read_text())


def keys_and_captions(directory: str) -> list[tuple[str, str]]:
    return [(e["key"].decode(), e["caption"].decode()) for e in examples(directory)]


def start_and_kill(command, seconds) -> bool:
    """Starts a command, and kills it `seconds` after it has written "go"; False if it had ended."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"go\n"
    time.sleep(seconds)
    process.kill()
    killed = process.wait() == -signal.SIGKILL
    process.stdout.close()
    return killed
