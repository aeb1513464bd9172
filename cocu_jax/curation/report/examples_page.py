"""A page of pictures to judge a curation by looking: images, neighbours, ranked concepts."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence

import tensorflow as tf
from etils import epath

from cocu_jax.curation.images import square_pixels
from cocu_jax.curation.plan import Plan
from cocu_jax.curation.storage.annotations import annotation_features
from cocu_jax.curation.storage.index import Index
from cocu_jax.curation.storage.shard_output import annotation_file
from cocu_jax.files import write_file
from cocu_jax.input.corpus import Corpus, read_shard
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.progress import progress
from cocu_jax.stopping import Stopped, StopRequest

Place = tuple[Corpus, int, int]  # corpus, shard, row within the shard

_VERSION = 1  # of the page; raise it when the same samples give another one
_SIDE = 128
_LONGEST_CAPTION = 300
SHOWN_NEIGHBOURS = 16
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem;
       max-width: 76rem; color: #222 }
article { display: grid; grid-template-columns: 180px 1fr; gap: 1rem; padding: 1rem 0;
          border-top: 1px solid #ddd }
img { width: 84px; height: 84px; border-radius: 4px; vertical-align: top }
article > div > img { width: 180px; height: 180px }
.concepts span { display: inline-block; margin: 2px; padding: 1px 7px; border-radius: 9px }
.new { font-weight: 600; outline: 1.5px solid #222 }
small { color: #666 }
"""


def write_page(
    plan: Plan, sampled: Sequence[tuple[int, int, list[int]]], stop: StopRequest
) -> None:
    """Writes `examples.html` in the work directory, unless this very page is there.

    Args:
        plan: the run.
        sampled: images to show as (shard, row, rows of their neighbours in the index).
        stop: heard between the shards that are read.

    Raises:
        Stopped: on request.
    """
    content = hashlib.sha256(json.dumps([_VERSION, plan.identity, sampled]).encode()).hexdigest()
    start = f"""<!doctype html><meta charset="utf-8"><meta name="content" content="{content}">"""
    if _starts_with(plan.workdir / "examples.html", start):
        return
    files = [(corpus, shard) for corpus in plan.index for shard in range(corpus.num_shards)]
    index = Index([], [corpus.shard_lengths[shard] for corpus, shard in files])
    samples = []
    for shard, row, near in sampled:
        located = [index.locate(i) for i in near if i >= 0]
        places = [(*files[file], there) for file, there in located]
        samples.append(((plan.corpus, shard, row), places))
    wanted = (place for anchor, near in samples for place in (anchor, *near[:SHOWN_NEIGHBOURS]))
    examples = read_places(wanted, stop)
    articles = []
    for anchor, near in samples:
        shown = [examples[_name(place)] for place in near[:SHOWN_NEIGHBOURS]]
        more, annotation = len(near) - len(shown), _annotation(plan, *anchor[1:])
        articles.append(article(plan.gallery, examples[_name(anchor)], shown, more, annotation))
    page = f"""{start}<title>Curated concepts</title>
<style>{STYLE}</style><h1>Curated concepts</h1>
<p>{html.escape(plan.corpus.directory)}, split {html.escape(plan.corpus.split)}.
Concepts are ranked; equal colours are one cluster;
<span class="new">outlined</span> concepts are not in the caption.</p>
{"".join(articles)}"""
    write_file(plan.workdir / "examples.html", page)


def _starts_with(path: epath.Path, start: str) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start.encode()
    except OSError:
        return False


def article(
    gallery: Sequence[str], anchor: dict, neighbours: Sequence[dict], more: int, annotation: dict
) -> str:
    """One image of the page, as HTML.

    Args:
        gallery: concepts by number.
        anchor: the image's example.
        neighbours: examples to show beside it.
        more: how many neighbours there are besides.
        annotation: its concepts, scores and clusters, as arrays.
    """
    named = set(anchor["caption_concepts"].tolist())
    spans = []
    ranked = (annotation[name].tolist() for name in ("concepts", "scores", "clusters"))
    for concept, score, cluster in zip(*ranked, strict=True):
        hue = f"hsl({cluster * 137 % 360} 70% 85%)" if cluster >= 0 else "#eee"
        kind = "" if concept in named else ' class="new"'
        name = html.escape(gallery[concept])
        spans.append(
            f'<span{kind} style="background:{hue}">{name} <small>{score:.2f}</small></span>'
        )
    near = "".join(_picture(example) for example in neighbours)
    near += f" <small>and {more} more</small>" if more else ""
    key = html.escape(_text(anchor["key"]))
    return f"""<article><div>{_picture(anchor)}<br><small>{key}</small></div>
<div><p>{html.escape(_caption(anchor))}</p><p>{near}</p>
<p class="concepts">{" ".join(spans) or "<small>no concepts</small>"}</p></div></article>
"""


def _picture(example: dict) -> str:
    processing = ImageProcessing(_SIDE, resample="bilinear")
    try:
        small = tf.io.encode_jpeg(square_pixels(tf.constant(example["image"]), processing))
        data = base64.b64encode(small.numpy()).decode()
    except tf.errors.OpError:
        return "<small>unreadable image</small>"
    return f'<img src="data:image/jpeg;base64,{data}" title="{html.escape(_caption(example))}">'


def read_places(places: Iterable[Place], stop: StopRequest) -> dict[tuple, dict]:
    """Examples by name of their place; every shard is read once."""
    wanted = {}
    for corpus, shard, row in places:
        wanted.setdefault((corpus.fingerprint, shard), (corpus, set()))[1].add(row)
    examples = {}
    shards = progress(wanted.items(), "Read images for the page", len(wanted), "shards")
    for (fingerprint, shard), (corpus, rows) in shards:
        if stop.requested:
            raise Stopped("stopped before the page; run the same command to continue")
        numbered = read_shard(corpus, shard).take(max(rows) + 1).enumerate()
        chosen = tf.constant(sorted(rows), tf.int64)
        picked = numbered.filter(lambda row, _, chosen=chosen: tf.reduce_any(chosen == row))
        for row, example in picked.as_numpy_iterator():
            examples[fingerprint, shard, int(row)] = example
    return examples


def _name(place: Place) -> tuple[str, int, int]:
    corpus, shard, row = place
    return corpus.fingerprint, shard, row


def _annotation(plan: Plan, shard: int, row: int) -> dict:
    file = plan.staging.local(annotation_file(plan, shard))
    (record,) = tf.data.TFRecordDataset(file).skip(row).take(1).as_numpy_iterator()
    example = annotation_features().deserialize_example(record)
    return {name: value.numpy() for name, value in example.items()}


def _caption(example: dict) -> str:
    caption = _text(example["caption"])
    return caption if len(caption) <= _LONGEST_CAPTION else caption[:_LONGEST_CAPTION] + " …"


def _text(value: bytes) -> str:
    return value.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
