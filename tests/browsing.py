"""Headless Chromium for the tests of pages, which skip where it is not installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A driver of selenium's."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs pip install -r requirements-browser.txt"
    )
    paths = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(paths):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(paths[0])
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(paths[1])))
    try:
        yield started
    finally:
        started.quit()


class Page:
    """What a driver shows."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def find(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def texts(self, css: str) -> list[str]:
        return [e.text for e in self.driver.find_elements("css selector", css)]

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]
