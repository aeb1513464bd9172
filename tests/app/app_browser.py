"""The app in a process of its own, and a headless Chromium that uses it.

Run it to take a picture of the app:
    python tests/app/app_browser.py PICTURE --checkpoint … --photo photo.jpg --words "dog, grass"
"""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = pathlib.Path(__file__).parents[2]


@contextlib.contextmanager
def running_app(folder: pathlib.Path, *options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Starts the app with `folder` for its temporary files; its address, and the process.

    What it prints is in `folder/log`.
    """
    log, cwd = folder / "log", folder / "cwd"
    cwd.mkdir()
    (folder / "tmp").mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TMPDIR": str(folder / "tmp"),
    }
    command = [sys.executable, "-m", "cocu_jax.app", "--port", "0", *options]
    with log.open("w") as file:
        app = subprocess.Popen(command, cwd=cwd, env=environment, stdout=file, stderr=file)
    try:
        yield _address(app, log), app
    finally:
        app.terminate()
        app.wait(60)


def _address(app: subprocess.Popen, log: pathlib.Path) -> str:
    end = time.monotonic() + 180
    while time.monotonic() < end and app.poll() is None:
        if found := re.search(r"The app is at (\S+)", log.read_text()):
            return found[1].rstrip("/")
        time.sleep(0.3)
    raise RuntimeError(f"the app did not start:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def browser(downloads: pathlib.Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that can reach this computer only."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,1150")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def wait(driver: webdriver.Chrome, found, seconds: float = 90):
    """Waits until `found(driver)` is true, and returns it."""
    return WebDriverWait(driver, seconds, 0.2).until(found)


def see(driver: webdriver.Chrome, selector: str):
    """Waits for an element, and returns it."""
    return wait(driver, lambda d: next(iter(d.find_elements(By.CSS_SELECTOR, selector)), None))


def upload(driver: webdriver.Chrome, file: pathlib.Path) -> None:
    """Uploads a file, and waits until its name is shown."""
    for remove in driver.find_elements(By.CSS_SELECTOR, "#photo button[aria-label='Clear']"):
        remove.click()
    see(driver, "#photo input[type=file]").send_keys(str(file))
    wait(driver, lambda d: file.stem in see(d, "#photo").text)


def segment(driver: webdriver.Chrome, words: str) -> None:
    """Types the words and presses the button."""
    box = see(driver, "#words textarea")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(words)
    see(driver, "#segment").click()


def main() -> None:
    """Takes the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("--checkpoint", required=True, nargs="+")
    parser.add_argument("--photo", type=pathlib.Path, required=True)
    parser.add_argument("--words", required=True)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_app(pathlib.Path(folder), "--checkpoint", *options.checkpoint) as (address, _),
        browser(pathlib.Path(folder)) as driver,
    ):
        driver.get(address)
        upload(driver, options.photo.resolve())
        segment(driver, options.words)
        see(driver, "#classes img")
        see(driver, ".legend li")
        time.sleep(1)  # pictures are decoded
        ActionChains(driver).move_to_element(see(driver, "#classes .layers")).perform()
        wait(driver, lambda d: see(d, "#classes .name").text)
        driver.save_screenshot(str(options.picture))


if __name__ == "__main__":
    main()
