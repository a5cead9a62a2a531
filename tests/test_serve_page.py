"""The page of `dss serve`: what it may load and run; in a real browser, what it shows and does."""

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs pip install -e ".[serve]"')

from browsing import Page, chromium
from serving import CARD, EXAMPLES, client_of, make_student

import dss_jax.serve
from dss_jax.core.student_card import StudentCard
from dss_jax.serve.limits import ServeLimits
from dss_jax.serve.server import bind, make_server, url_of
from dss_jax.serve.service import Served, Service

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"

HERE = Path(dss_jax.serve.__path__[0])


class TestFiles:
    def test_nothing_comes_from_outside_and_nothing_inline_runs(self) -> None:
        with client_of(make_student()[0]) as client:
            page = client.get("/")
            policy = page.headers["Content-Security-Policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
            assert "unsafe" not in policy
            assert re.findall(r'(?:src|href)="([^"]+)"', page.text) == [
                *("data:,", "page.css", "page.js", "docs", "v1/model")
            ]
            assert not re.search(r"<style|<script>|\son\w+=|\sstyle=", page.text)
            for path in ("/page.css", "/page.js"):
                found = client.get(path)
                assert found.status_code == 200
                assert "//" not in re.sub(r"^\s*//.*|; //.*", "", found.text, flags=re.M)

    def test_the_script_makes_no_markup_of_texts(self) -> None:
        script = (HERE / "page.js").read_text()
        markup = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval", "DOMParser")
        assert not [word for word in markup if word in script]
        assert script.count("textContent") > 5


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as started:
        yield started


@contextmanager
def served(
    card: StudentCard = CARD, token: str = "", cold: bool = False
) -> Iterator[tuple[str, Any]]:
    """The URL of a server in a thread, and its engine. `cold`: it warms up until it is let go."""
    student, engine = make_student(card)
    if cold:
        engine.hold.clear()
    service = Service(Served(student, "words", token, ("127.0.0.1",), ServeLimits()))
    with bind("127.0.0.1", 0) as listening:
        server = make_server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not (cold or service.ready):  # The browser would log that it is not.
                time.sleep(0.01)
            yield url_of(listening), engine
        finally:
            engine.hold.set()
            server.should_exit = True
            thread.join()
            service.batcher.stop()


class Browser(Page):
    """The page in Chromium."""

    def __init__(self, driver: Any, url: str) -> None:
        super().__init__(driver)
        driver.get_log("browser")
        driver.get(url)

    def focused(self) -> str:
        return self.driver.switch_to.active_element.get_attribute("id")

    def until(self, found: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not found():
            assert time.monotonic() < deadline, self.find("answer").text
            time.sleep(0.02)

    def shows(self, name: str) -> None:
        self.until(self.find(name).is_displayed)

    def choose(self, index: int) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.find("examples")).select_by_index(index)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as (url, _):
        yield url


@pytest.fixture
def page(driver: Any, url: str) -> Browser:
    opened = Browser(driver, url)
    opened.shows("starters")
    return opened


class TestBrowser:
    def test_an_example_is_answered_beside_what_the_teacher_said(self, page: Browser) -> None:
        (wanted,) = make_student()[0].predict(
            EXAMPLES[0]["input"], explain=True, labels=EXAMPLES[0]["allowed_labels"]
        )
        page.choose(1)
        page.shows("result")
        assert not page.find("reads").is_displayed()
        assert page.find("label").text == wanted.label
        shares = sorted(wanted.probabilities.values(), reverse=True)
        assert page.texts("#bars .number") == [f"{100 * share:.1f} %" for share in shares]
        assert page.find("rationale").text == wanted.rationale
        assert page.find("teacher-rationale").text == EXAMPLES[0]["rationale"]
        gold = EXAMPLES[0]["label"]
        (marked,) = [t for t in page.texts("#bars .name") if "gold" in t]
        assert marked.split("\n")[0].startswith(gold)
        assert "teacher" in marked
        right = wanted.label == gold
        assert f"student {'right' if right else 'wrong'}" in page.find("verdict").text
        assert "teacher right" in page.find("verdict").text
        assert page.errors() == []

    def test_a_student_that_reads_a_rationale_is_given_one(self, driver: Any) -> None:
        card = dataclasses.replace(CARD, form="rationale_input", rationale_prefix=None)
        with served(card) as (url, _):
            page = Browser(driver, url)
            page.shows("reads")
            page.choose(1)
            page.shows("result")
            assert page.find("reads").get_attribute("value") == EXAMPLES[0]["rationale"]
            page.find("reads").clear()
            page.find("reads").send_keys(" He eats one. ")
            page.find("ask").click()
            both = f"{EXAMPLES[0]['input']}</s>He eats one."
            wanted = make_student(card)[0].predict(both, labels=EXAMPLES[0]["allowed_labels"])[0]
            shares = sorted(wanted.probabilities.values(), reverse=True)
            shown = [f"{100 * share:.1f} %" for share in shares]
            page.until(lambda: page.texts("#bars .number") == shown)
            assert page.find("label").text == wanted.label

    def test_widths_of_bars_are_the_probabilities(self, page: Browser) -> None:
        page.choose(2)
        page.shows("result")
        script = (
            "return [...document.querySelectorAll('#bars .fill')].map("
            "e => e.offsetWidth / e.parentElement.offsetWidth)"
        )
        (wanted,) = make_student()[0].predict(
            EXAMPLES[1]["input"], labels=EXAMPLES[1]["allowed_labels"]
        )
        shares = sorted(wanted.probabilities.values(), reverse=True)
        page.until(lambda: page.driver.execute_script(script) == pytest.approx(shares, abs=0.01))

    def test_own_input_by_keys_alone(self, page: Browser) -> None:
        from selenium.webdriver.common.keys import Keys

        body = page.driver.find_element("tag name", "body")
        body.send_keys(Keys.TAB)
        order = []
        for _ in range(5):
            order.append(page.focused())
            page.press(Keys.TAB)
        assert order == ["examples", "input", "labels", "explain", "ask"]
        page.find("input").send_keys("Ann has 5 pens.")
        page.find("labels").send_keys("yes\nno\n\n yes \n")
        page.press(Keys.CONTROL, Keys.ENTER)
        page.shows("result")
        (wanted,) = make_student()[0].predict("Ann has 5 pens.", explain=True, labels=["yes", "no"])
        assert page.find("label").text == wanted.label
        assert len(page.texts("#bars li")) == 2
        assert page.find("verdict").text == ""
        assert not page.find("teacher-voice").is_displayed()

    def test_any_text_has_no_bars(self, page: Browser) -> None:
        page.find("input").send_keys("Ann has 5 pens.")
        page.find("ask").click()
        page.shows("result")
        assert not page.find("bars").is_displayed()
        assert "Any text may be the label." in page.find("timing").text

    def test_many_labels_are_shown_on_demand(self, page: Browser) -> None:
        page.find("input").send_keys("Which?")
        page.find("labels").send_keys("\n".join(f"{n} + {n}" for n in range(30)))
        page.find("ask").click()
        page.shows("result")
        assert len(page.texts("#bars li")) == 8
        page.find("more").click()
        assert len(page.texts("#bars li")) == 30

    def test_a_changed_example_is_ones_own_input(self, page: Browser) -> None:
        page.choose(1)
        page.shows("teacher-voice")
        page.find("input").send_keys(" And more.")
        page.find("ask").click()
        page.until(lambda: not page.find("teacher-voice").is_displayed())
        assert page.find("examples").get_attribute("value") == ""

    def test_an_error_is_told(self, page: Browser) -> None:
        script = "document.getElementById('input').value = 'a'.repeat(30000)"
        page.driver.execute_script(script)
        page.find("ask").click()
        page.shows("error")
        assert "30,000 characters; 20,000 are allowed" in page.find("error").text

    @pytest.mark.parametrize("width", [320, 390, 1280])
    def test_the_page_does_not_scroll_sideways(self, page: Browser, width: int) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            page.choose(1)
            page.shows("result")
            script = "return document.documentElement.scrollWidth"
            assert page.driver.execute_script(script) <= width
            # The answer is seen without a hand on the page.
            script = "return document.getElementById('label').getBoundingClientRect().bottom"
            assert 0 < page.driver.execute_script(script) <= 800
        finally:
            page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_texts_can_be_read_in_both_schemes(self, page: Browser, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        try:
            page.choose(1)
            page.shows("result")
            pairs = page.driver.execute_script(CONTRASTS)
            assert len(pairs) > 15
            for text, ink, paper in pairs:
                assert contrast(ink, paper) >= 4.5, (text, ink, paper)
        finally:
            page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def test_nothing_that_a_model_or_a_data_set_wrote_is_markup(self, driver: Any) -> None:
        texts = dict.fromkeys(("input", "label", "teacher_label", "rationale"), HOSTILE)
        example = texts | {"allowed_labels": [HOSTILE, "<b>b</b>"]}
        card = dataclasses.replace(CARD, examples=(example,), task=HOSTILE, description=HOSTILE)
        with served(card) as (url, _):
            page = Browser(driver, url)
            page.shows("starters")
            page.choose(1)
            page.shows("result")
            assert HOSTILE in page.find("about").text
            assert page.find("label").text in example["allowed_labels"]
            assert page.find("teacher-rationale").text == HOSTILE
            assert not driver.find_elements("css selector", "body img, body script, main b")
            assert driver.title == "words: a student at work"
            assert page.errors() == []

    def test_the_token_is_asked_for(self, driver: Any) -> None:
        with served(token="secret-word") as (url, _):
            page = Browser(driver, url)
            page.shows("token-field")
            assert "wants its token" in page.find("error").text
            page.until(lambda: page.focused() == "token")
            page.press("secret-word\t")
            page.shows("starters")
            page.choose(1)
            page.shows("result")

    def test_it_says_that_the_student_warms_up(self, driver: Any) -> None:
        with served(cold=True) as (url, engine):
            page = Browser(driver, url)
            page.until(lambda: "warms up" in page.find("status").text)
            page.choose(1)
            page.until(lambda: "Asking" in page.find("status").text)
            engine.hold.set()
            page.shows("result")

    def test_the_api_page_runs_under_its_policy(self, driver: Any, url: str) -> None:
        page = Browser(driver, f"{url}/docs")
        page.until(lambda: "/v1/predict" in driver.find_element("tag name", "body").text)
        assert page.errors() == []


CONTRASTS = """
const visible = (e) => e.checkVisibility() && [...e.childNodes].some(
  (n) => n.nodeType === 3 && n.textContent.trim());
const paper = (e) => {
  for (let at = e; at; at = at.parentElement) {
    const found = getComputedStyle(at).backgroundColor;
    if (found !== "rgba(0, 0, 0, 0)") return found;
  }
};
return [...document.querySelectorAll("body *")].filter(visible).map(
  (e) => [e.textContent, getComputedStyle(e).color, paper(e)]);
"""
"""Of each text that is seen: it, its colour, and that behind it."""


def contrast(one: str, other: str) -> float:
    """WCAG's, of two colours as CSS has them."""

    def light(colour: str) -> float:
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)
