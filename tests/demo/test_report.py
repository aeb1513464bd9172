"""The report: a valid, self-contained page; figures that are the means of the seeds."""

import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import pytest
from miniature_results import CLASSES, RUNS, STUFF, miniature_results
from PIL import Image

from cocu_jax.demo.charts import Line, line_chart, round_ticks
from cocu_jax.demo.pictures import class_colours, group_colours, map_uri
from cocu_jax.demo.report import write_report
from data_prep.scenes.artwork import ARTWORK
from data_prep.scenes.stuff import TEXTURES

VOID = {"meta", "img", "br", "input", "line", "polyline"}


class Page(html.parser.HTMLParser):
    """Collects what a test asks about, and checks that tags are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.links, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes["src"])
        self.links += [attributes[name] for name in ("href", "srcset") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def decoded(uri: str) -> Image.Image:
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image


@pytest.fixture
def written(tmp_path):
    table = write_report(tmp_path, miniature_results())
    page = Page((tmp_path / "report.html").read_text())
    return page, json.loads((tmp_path / "report.json").read_text()), table


def test_the_page_holds_all_its_pictures_and_nothing_from_elsewhere(written, tmp_path):
    page, _, _ = written
    assert len(page.images) == 3 * (2 + 2 * len(RUNS)) + 3 * (1 + 4) + (1 + 4) + 4
    for uri in page.images:
        assert min(decoded(uri).size) >= 16
    assert not page.links
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"<script|url\(|@import|src=.?http", text)


def test_names_and_captions_are_escaped(written, tmp_path):
    page, _, _ = written
    assert "grass <&>" not in (tmp_path / "report.html").read_text()
    text = " ".join(page.text)
    assert "grass <&>" in text and '“a "car" & <tree>”' in text


def test_figures_are_means_over_seeds(written):
    page, figures, table = written
    cocu = figures["runs"]["cocu"]
    assert cocu["per_seed"] == pytest.approx([0.30, 0.31, 0.32])
    assert cocu["miou"] == pytest.approx(0.31)
    assert cocu["range"] == pytest.approx(0.02)
    assert cocu["miou_things"] == pytest.approx((0.31 + 0.33) / 2)
    assert cocu["miou_stuff"] == pytest.approx(0.29)  # the sky never occurs
    assert cocu["iou"]["sky"] is None
    assert figures["dense_clip"]["miou"] == pytest.approx(0.51)
    assert figures["dense_clip"]["bound_miou"] is None
    assert figures["difference"]["per_seed"] == pytest.approx([0.1, 0.1, 0.1])
    assert figures["constant_miou"] == pytest.approx(0.05)
    assert figures["curation"]["precision"] == pytest.approx(0.71)
    assert figures["curation"]["caption"]["recall_omitted"] is None  # was not a number
    for text in (table, " ".join(page.text)):
        for figure in ("21.0", "31.0", "41.0", "+10.0", "51.0", "5.0", "71.0", "30.0"):
            assert figure in text


def test_the_omission_model_is_stated(written):
    page, figures, _ = written
    text = " ".join(" ".join(page.text).split())
    assert (
        "left out of its caption with probability 0.95 and each thing with probability 0.1" in text
    )
    assert figures["omission_declared"] == {"things": 0.1, "stuff": 0.95}


def test_one_scene_is_followed_from_its_caption_to_its_labels(written):
    page, _, _ = written
    text = " ".join(" ".join(page.text).split())
    for said in ("“a sketch of a <sky>”, “a car.”", "2.10, cluster 1", "1.90", "first 2 epochs"):
        assert said in text


def test_a_lost_comparison_is_shown_as_one(tmp_path):
    results = miniature_results()
    swapped = {"caption": results.runs["cocu"], "cocu": results.runs["caption"]}
    table = write_report(tmp_path, dataclasses.replace(results, runs=results.runs | swapped))
    assert "-10.0" in table and "-10.0" in (tmp_path / "report.html").read_text()


def test_one_seed_has_no_spread(tmp_path):
    write_report(tmp_path, miniature_results(seeds=1))
    text = (tmp_path / "report.html").read_text()
    assert "lowest – highest seed" not in text and "seeds 2" not in text


def test_map_pictures_give_back_every_label():
    colours = class_colours((*ARTWORK, *TEXTURES), tuple(TEXTURES))
    labels = np.random.default_rng(0).integers(0, len(colours), size=(24, 40))
    pixels = np.asarray(decoded(map_uri(labels, colours)).convert("RGB")).astype(int)
    distance = np.abs(pixels[:, :, None] - colours.astype(int)).sum(-1)
    assert (distance.argmin(-1) == labels).all() and (distance.min(-1) == 0).all()


@pytest.mark.parametrize(
    "colours",
    [
        class_colours(CLASSES, STUFF),
        class_colours((*list(ARTWORK)[:10], *list(TEXTURES)[:6]), tuple(TEXTURES)),
        group_colours(8),
    ],
)
def test_colours_can_be_told_apart(colours):
    distance = np.linalg.norm(colours[:, None].astype(float) - colours, axis=-1)
    assert distance[~np.eye(len(colours), dtype=bool)].min() > 40


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.013, 0.92), (-3, 4.2), (5, 5), (0, 0), (10, 600), (1e-6, 3e-6)]
)
def test_ticks_cover_their_range_in_equal_round_steps(low, high):
    ticks = round_ticks(low, high)
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    leading = float(f"{steps[0]:.6e}".split("e")[0])
    assert leading in (1.0, 2.0, 2.5, 5.0)


def test_charts_keep_points_inside_and_higher_values_higher():
    line = Line("cocu", [(0, 4.0), (100, 1.5), (300, 0.2)])
    svg = str(line_chart([line], "a loss", "steps"))
    points = re.search(r'<polyline class="cocu thick" points="([^"]*)"', svg).group(1)
    x, y = np.array([pair.split(",") for pair in points.split()], float).T
    assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all()  # y grows downwards
    assert x.min() >= 0 and x.max() <= 520 and y.min() >= 0 and y.max() <= 250
    assert (x[2] - x[1]) / (x[1] - x[0]) == pytest.approx(2, rel=0.01)
    assert line_chart([], "nothing", "steps") == ""
