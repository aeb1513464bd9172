"""The app, end to end: the command in a process of its own, used in a headless Chromium."""

import json
import pathlib

import numpy as np
import pytest
from app_browser import browser, running_app, see, segment, upload, wait
from PIL import Image
from pycocotools import mask as coco_mask
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.slow

FOREIGN = """return performance.getEntriesByType("resource").map(entry => entry.name)
  .filter(name => !name.startsWith(location.origin) && !name.startsWith("data:"))"""


@pytest.fixture(scope="module")
def app(groupvit, clip, curated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    options = "--checkpoint", groupvit, clip, "--curation", curated
    with running_app(folder, *options) as (address, process):
        yield address, process, folder


@pytest.fixture
def page(app, tmp_path):
    with browser(tmp_path) as driver:
        driver.get(app[0])
        yield driver


def message(driver):
    """The text of the one message on the page, which is then closed."""
    wait(driver, lambda d: see(d, ".toast-body").text.strip(), 30)  # it fades in
    found = driver.find_elements(By.CSS_SELECTOR, ".toast-body")
    text = " ".join(part.text for part in found)
    assert len(found) == 1, text
    found[0].find_element(By.CSS_SELECTOR, "button").click()
    wait(driver, lambda d: not d.find_elements(By.CSS_SELECTOR, ".toast-body"))
    return text


def downloaded(driver, button: str, folder: pathlib.Path, ending: str) -> pathlib.Path:
    see(driver, f"#{button}").click()
    return wait(driver, lambda _: next(iter(folder.glob(f"*{ending}")), None))


def test_upload_type_see_and_download(page, tmp_path, photo):
    upload(page, photo)
    segment(page, "dog, <b>grass</b>, sky")
    see(page, "#groups img")
    rows = wait(page, lambda d: d.find_elements(By.CSS_SELECTOR, ".legend li"))
    shares = {row.text.split("\n")[0]: row.text.split("\n")[1] for row in rows}
    labels = Image.open(downloaded(page, "labels_file", tmp_path, "_labels.png"))
    masks = json.loads(downloaded(page, "masks_file", tmp_path, "_masks.json").read_text())

    assert set(shares) == {"dog", "<b>grass</b>", "sky"}
    assert labels.size == (48, 64)  # upright: the file is 64 wide and 48 high, turned by EXIF
    for entry in masks["annotations"]:
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        np.testing.assert_array_equal(mask, np.asarray(labels) == entry["category_id"])
        assert shares[entry["category_name"]] == f"{100 * mask.mean():.1f} %"
    assert page.execute_script(FOREIGN) == []
    picture = see(page, "#classes .layers")
    for x, y in ((0.1, 0.2), (0.5, 0.5), (0.9, 0.7)):
        width, height = picture.size["width"], picture.size["height"]
        ActionChains(page).move_to_element_with_offset(
            picture, round((x - 0.5) * width), round((y - 0.5) * height)
        ).perform()
        label = labels.getpixel((int(x * labels.width), int(y * labels.height)))
        name = next(e["category_name"] for e in masks["annotations"] if e["category_id"] == label)
        assert see(page, "#classes .name").text == name


def test_strength_is_changed_by_the_page_alone(page, photo):
    upload(page, photo)
    segment(page, "dog, sky")
    colours = see(page, "#classes .colours")
    assert colours.value_of_css_property("opacity") == "0.55"
    box = see(page, "#strength input[type=number]")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("0.2" + Keys.ENTER)
    wait(page, lambda d: colours.value_of_css_property("opacity") == "0.2")
    segment(page, "cat, sea, sky")
    wait(page, lambda d: "sea" in see(d, "#shares").text)
    assert see(page, "#classes .colours").value_of_css_property("opacity") == "0.2"


def test_checkpoint_and_method_are_chosen(page, photo):
    method = see(page, "#checkpoint input")
    assert not page.find_elements(By.CSS_SELECTOR, "#method")
    method.click()
    wait(page, lambda d: d.find_elements(By.CSS_SELECTOR, "ul[role=listbox] li")[1:])[0].click()
    see(page, "#method input")
    upload(page, photo)
    segment(page, "dog, sky")
    see(page, "#classes .colours")
    assert not page.find_elements(By.CSS_SELECTOR, "#groups img")  # a CLIP has none


def test_hostile_uploads_give_one_message_each(page, app, hostile):
    for file, said in hostile.items():
        upload(page, file)
        segment(page, "dog")
        assert said in message(page), file.name

    log = (app[2] / "log").read_text()
    assert "Traceback" not in log


def test_a_curation_is_searched(page):
    tabs = wait(page, lambda d: d.find_elements(By.CSS_SELECTOR, "button[role=tab]")[1:])
    tabs[0].click()
    wait(page, lambda d: "Images 0 to 5 of 51" in see(d, "#status").text)
    assert len(page.find_elements(By.CSS_SELECTOR, "#images article")) == 6
    see(page, "#next").click()
    wait(page, lambda d: "Images 6 to 11 of 51" in see(d, "#status").text)
    images = page.find_elements(By.CSS_SELECTOR, "#images article img")
    assert all(image.get_property("naturalWidth") == 128 for image in images)
    box = see(page, "#concept input, #concept textarea")
    box.send_keys("aardvark\n")
    assert "no concept" in message(page)


def test_nothing_is_left_when_the_app_stops(groupvit, photo, tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    with running_app(folder, "--checkpoint", groupvit) as (address, process):
        with browser(tmp_path) as driver:
            driver.get(address)
            upload(driver, photo)
            segment(driver, "dog, sky")
            see(driver, "#classes img")
        temporary = list((folder / "tmp").glob("cocu_app_*"))
        process.terminate()
        assert process.wait(60) == 0

    assert len(temporary) == 1
    assert not list((folder / "tmp").iterdir())
    assert not list((folder / "cwd").iterdir())
