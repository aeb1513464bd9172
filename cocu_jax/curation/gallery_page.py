"""A page of pictures to judge a curation by looking: images, neighbours, ranked concepts."""

import base64
import html
from collections.abc import Sequence

import tensorflow as tf

from cocu_jax.curation.annotations import annotation_features
from cocu_jax.curation.images import square_pixels
from cocu_jax.curation.index import Index
from cocu_jax.curation.plan import Plan
from cocu_jax.curation.shard_files import write_file
from cocu_jax.curation.shard_output import annotation_file
from cocu_jax.input.corpus import Corpus, read_shard
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.progress import progress

_SIDE = 128
_LONGEST_CAPTION = 300
_SHOWN_NEIGHBOURS = 8
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; color: #222 }
article { display: grid; grid-template-columns: 180px 1fr; gap: 1rem; padding: 1rem 0;
          border-top: 1px solid #ddd }
img { width: 84px; height: 84px; border-radius: 4px; vertical-align: top }
article > div > img { width: 180px; height: 180px }
.concepts span { display: inline-block; margin: 2px; padding: 1px 7px; border-radius: 9px }
.new { font-weight: 600; outline: 1.5px solid #222 }
small { color: #666 }
"""


def write_page(plan: Plan, reports: Sequence[dict]) -> None:
    """Writes `gallery.html` in the work directory.

    Args:
        plan: the run.
        reports: of all shards, in order; they name the sampled rows and their neighbours.
    """
    files = [(corpus, shard) for corpus in plan.index for shard in range(corpus.num_shards)]
    index = Index([], [corpus.shard_lengths[shard] for corpus, shard in files])
    samples = [
        (shard, int(row), near)
        for shard, report in enumerate(reports)
        for row, near in report["samples"].items()
    ]
    articles = []
    for shard, row, near in progress(samples, "Draw gallery.html", len(samples), "images"):
        places = [index.locate(i) for i in near[:_SHOWN_NEIGHBOURS] if i >= 0]
        neighbours = [_example(*files[file], local) for file, local in places]
        anchor = _example(plan.corpus, shard, row)
        articles.append(_article(plan, anchor, neighbours, _annotation(plan, shard, row)))
    page = f"""<!doctype html><meta charset="utf-8"><title>Curated concepts</title>
<style>{_STYLE}</style><h1>Curated concepts</h1>
<p>{html.escape(plan.corpus.directory)}, split {html.escape(plan.corpus.split)}.
Concepts are ranked; equal colours are one cluster;
<span class="new">outlined</span> concepts are not in the caption.</p>
{"".join(articles)}"""
    write_file(plan.workdir / "gallery.html", page.encode())


def _article(plan: Plan, anchor: dict, neighbours: Sequence[dict], annotation: dict) -> str:
    named = set(anchor["caption_concepts"].tolist())
    spans = []
    ranked = (annotation[name].tolist() for name in ("concepts", "scores", "clusters"))
    for concept, score, cluster in zip(*ranked, strict=True):
        hue = f"hsl({cluster * 137 % 360} 70% 85%)" if cluster >= 0 else "#eee"
        kind = "" if concept in named else ' class="new"'
        name = html.escape(plan.gallery[concept])
        spans.append(
            f'<span{kind} style="background:{hue}">{name} <small>{score:.2f}</small></span>'
        )
    near = "".join(_picture(example) for example in neighbours)
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


def _example(corpus: Corpus, shard: int, row: int) -> dict:
    return next(iter(read_shard(corpus, shard, skip=row).take(1).as_numpy_iterator()))


def _annotation(plan: Plan, shard: int, row: int) -> dict:
    records = tf.data.TFRecordDataset(str(annotation_file(plan, shard))).skip(row).take(1)
    (record,) = records.as_numpy_iterator()
    example = annotation_features().deserialize_example(record)
    return {name: value.numpy() for name, value in example.items()}


def _caption(example: dict) -> str:
    caption = _text(example["caption"])
    return caption if len(caption) <= _LONGEST_CAPTION else caption[:_LONGEST_CAPTION] + " …"


def _text(value: bytes) -> str:
    return value.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
