"""A browser opens the report: every picture loads, with and without dark mode."""

import re

import numpy as np
import pytest
from browser import loaded_page, screenshot
from miniature_results import miniature_results
from PIL import Image

from cocu_jax.demo.report import write_report

COUNT_LOADED = """<script>addEventListener("load", () => {
  const images = [...document.images];
  const loaded = images.filter(image => image.complete && image.naturalWidth > 0);
  document.body.dataset.loaded = loaded.length + " of " + images.length;
});</script>"""


@pytest.mark.slow
def test_every_picture_loads_in_a_browser(tmp_path):
    write_report(tmp_path, miniature_results())
    page = tmp_path / "report.html"
    page.write_text(page.read_text().replace("</body>", COUNT_LOADED + "</body>"))
    loaded, total = re.search(r'data-loaded="(\d+) of (\d+)"', loaded_page(page)).groups()
    assert loaded == total == "48"


@pytest.mark.slow
def test_the_page_shows_something(tmp_path):
    write_report(tmp_path, miniature_results())
    screenshot(tmp_path / "report.html", tmp_path / "report.png", 1180, 900)
    pixels = np.asarray(Image.open(tmp_path / "report.png").convert("RGB"))
    assert pixels.shape == (900, 1180, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
