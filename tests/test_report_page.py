"""The report's page: nothing of the data is markup; and, in a real browser, what it shows."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Page, chromium
from results_maker import accuracy_of, write_run

from dss_jax.report import report
from dss_jax.report.page import as_json, render

HOSTILE = (
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "<!-- <script>",
    "a\u2028b\u2029c & d < e > f",
    "{{SCRIPT}}",
)


def answer(text: str, correct: bool, right: float, rationale: str | None = None) -> dict[str, Any]:
    return {"prediction": text, "correct": correct, "right": right, "rationale": rationale}


def item(i: int, teacher: bool, *students: bool, text: str = "") -> dict[str, Any]:
    return {
        "id": f"test-{i}",
        "input": text or f"Question {i}?",
        "gold": "yes",
        "teacher": {
            "label": "yes" if teacher else "no",
            "rationale": f"Reason {i}.",
            "correct": teacher,
        },
        "answers": [answer("yes" if s else "no", s, float(s)) for s in students],
    }


def page_data(items: list[dict[str, Any]]) -> dict[str, Any]:
    methods = [{"name": n, "seeds": 4, "accuracy": 50.0} for n in ("standard, tiny", "dss, tiny")]
    own = {"task": "toy", "metric": "text_accuracy", "methods": methods, "items": items}
    other = {
        "task": "other",
        "metric": "text_accuracy",
        "methods": methods[:1],
        "items": [item(0, True, True, text="Another task?")],
    }
    table = {
        "title": "toy <b>",
        "header": ["method", "100 %"],
        "rows": [["<i>dss</i>", "1.00"]],
        "note": "a & b",
    }
    return {"title": "sweep </title>", "split": "test", "tables": [table], "tasks": [own, other]}


ITEMS = [
    item(0, True, True, True),
    item(1, False, True, False),
    item(2, False, False, True),
    item(3, True, False, False),
    item(4, False, False, False),
    *(item(i, True, True, True) for i in range(5, 45)),
]

ITEMS[4]["answers"][1]["names"] = "yes"


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_lets_only_the_pages_own_script_run(tmp_path: Path) -> None:
    page = render(page_data(ITEMS), [("by_data", "<svg><style>*{a:b}</style></svg>")])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    assert digest(scripts[0]) in policy
    for style in re.findall(r"<style[^>]*>(.*?)</style>", page, re.S):
        assert digest(style) in policy
    assert not re.search(r"https?://(?!www\.w3\.org)", page), "nothing is fetched"
    assert not re.search(r"<[^>]+\son\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.S))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_the_data_is_no_markup(tmp_path: Path, text: str) -> None:
    data = page_data([item(0, True, True, True, text=text)])
    data["tables"][0]["rows"] = [[text, text]]
    data["title"] = text
    page = render(data, [])
    assert page.count("<script") == 2
    assert "<img" not in page
    (inside,) = re.findall(r'id="data">(.*?)</script>', page, re.S)
    assert not set(inside) & set("<>&\u2028\u2029")
    assert json.loads(inside)[0]["items"][0]["input"] == text


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": ["".join(HOSTILE), 1.5, None, True, "ünï"]}
    assert json.loads(as_json(value)) == value


def test_a_figure_with_a_script_is_not_written(tmp_path: Path) -> None:
    for bad in ("<svg><script>1</script></svg>", "<svg onload='x()'></svg>"):
        with pytest.raises(AssertionError):
            render(page_data(ITEMS), [("f", bad)])


def test_the_names_in_a_figure_are_any_text(tmp_path: Path) -> None:
    for method in ("dss one=1", "javascript: <script> &lt;b", "של"):
        for n in (500, 1000):
            name = str(len(list(tmp_path.iterdir())))
            write_run(tmp_path / name, accuracy_of(50), method=method, examples=n)
    report.write(tmp_path, html=True)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<svg" in page
    assert ">dss one=1<" in page
    assert page.count("<script") == 2


def test_a_real_report_has_a_page(tmp_path: Path) -> None:
    for seed in range(3):
        for method, score in (("standard", 40), ("dss", 50)):
            for n in (500, 1000):
                write_run(
                    tmp_path / method / str(n) / str(seed),
                    accuracy_of(score),
                    method=method,
                    examples=n,
                    seed=seed,
                )
    made = report.write(tmp_path, html=True)
    page = (tmp_path / "report" / "report.html").read_text()
    assert made.files[-1].name == "report.html"
    assert page.count("<svg") == 1
    assert "{{" not in page


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as started:
        yield started


class Browser(Page):
    """The page in Chromium."""

    def __init__(self, driver: Any, file: Path) -> None:
        super().__init__(driver)
        self._file = file
        self.open()

    def open(self, hash_: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self._file.as_uri()}{hash_}")

    def ids(self) -> list[int]:
        return [int(t.removeprefix("test-")) for t in self.texts("#items .id")]

    def choose(self, name: str, text: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.find(name)).select_by_visible_text(text)


@pytest.fixture
def browser(driver: Any, tmp_path: Path) -> Browser:
    file = tmp_path / "report.html"
    file.write_text(render(page_data(ITEMS), [("by_data", "<svg width='10' height='10'></svg>")]))
    return Browser(driver, file)


class TestBrowser:
    def test_hebrew_and_arabic_read_from_the_right(self, driver: Any, tmp_path: Path) -> None:
        text = "\u05e9\u05dc\u05d5\u05dd."
        file = tmp_path / "report.html"
        file.write_text(render(page_data([item(0, True, True, True, text=text)]), []))
        left = """const range = document.createRange();
            const text = document.querySelector("#items .input").firstChild;
            range.setStart(text, arguments[0]);
            range.setEnd(text, arguments[0] + 1);
            return range.getBoundingClientRect().left;"""
        page = Browser(driver, file).driver
        assert page.execute_script(left, len(text) - 1) < page.execute_script(left, 0)

    def test_all_items_are_shown_a_page_at_a_time(self, browser: Browser) -> None:
        assert browser.ids() == list(range(20))
        assert browser.find("count").text == "45 of 45 items"
        browser.find("after").click()
        assert browser.ids() == list(range(20, 40))
        assert browser.find("page").text == "page 2 of 3"
        browser.find("before").click()
        assert browser.ids() == list(range(20))
        assert browser.errors() == []

    @pytest.mark.parametrize(
        ("show", "student", "ids"),
        [
            ("student right, teacher wrong", "standard, tiny", [1]),
            ("student right, teacher wrong", "dss, tiny", [2]),
            ("teacher right, student wrong", "dss, tiny", [3]),
            ("student wrong", "dss, tiny", [1, 3, 4]),
            ("label and rationale disagree", "dss, tiny", [4]),
            ("methods disagree", "dss, tiny", [1, 2]),
            ("all methods wrong", "dss, tiny", [3, 4]),
        ],
    )
    def test_filters(self, browser: Browser, show: str, student: str, ids: list[int]) -> None:
        browser.choose("method", student)
        browser.choose("show", show)
        assert browser.ids() == ids

    def test_confidence_is_shown_and_filtered_by(self, driver: Any, tmp_path: Path) -> None:
        data = page_data([item(i, True, True, True) for i in range(10)])
        for i, one in enumerate(data["tasks"][0]["items"]):
            shares = [["yes", i / 10], ["no", 1 - i / 10]]
            one["answers"][1] |= {"confidence": i / 10, "shares": shares}
        (tmp_path / "r.html").write_text(render(data, []))
        browser = Browser(driver, tmp_path / "r.html")
        browser.choose("method", "dss, tiny")
        assert browser.ids() == list(range(10))
        for name, text in (("low", "70"), ("high", "85")):
            browser.find(name).clear()
            browser.find(name).send_keys(text)
        assert browser.ids() == [7, 8]
        text = browser.texts("#items > li")[0]
        assert "yes ✓ right, 4 of 4 seeds, 70.0 % sure\nyes 70.0 %, no 30.0 %" in text
        address = browser.driver.current_url
        browser.open("#" + address.partition("#")[2])
        assert browser.ids() == [7, 8]
        browser.choose("method", "standard, tiny")
        assert browser.ids() == [], "of whom it is not known"
        browser.choose("task", "other (text accuracy)")
        assert not browser.find("sure").is_displayed()
        assert browser.ids() == [0]
        assert [browser.find(n).get_attribute("value") for n in ("low", "high")] == ["0", "100"]
        assert browser.errors() == []

    def test_search_is_in_everything(self, browser: Browser) -> None:
        browser.find("search").send_keys("REASON 17")
        assert browser.ids() == [17]
        assert browser.find("count").text == "1 of 45 items"
        browser.find("search").clear()
        browser.find("search").send_keys("no such thing")
        assert browser.ids() == []
        assert browser.find("count").text == "0 of 45 items"

    def test_an_item_shows_everybody(self, browser: Browser) -> None:
        browser.choose("show", "methods disagree")
        text = browser.texts("#items > li")[0]
        for part in (
            "Question 1?",
            "gold\nyes",
            "no ✗ wrong\nReason 1.",
            "yes ✓ right, 4 of 4 seeds",
            "no ✗ wrong, 0 of 4 seeds",
        ):
            assert part in text

    def test_another_task(self, browser: Browser) -> None:
        browser.choose("task", "other (text accuracy)")
        assert browser.texts("#items .input") == ["Another task?"]
        assert browser.texts("#method option") == ["standard, tiny"]

    def test_the_address_keeps_what_is_shown(self, browser: Browser) -> None:
        browser.choose("method", "dss, tiny")
        browser.choose("show", "all methods wrong")
        browser.find("search").send_keys("question 4")
        address = browser.driver.current_url
        browser.open("#" + address.partition("#")[2])
        assert browser.ids() == [4]
        assert browser.find("search").get_attribute("value") == "question 4"
        browser.open("#task=99&method=x&show=constructor&page=-4")
        assert browser.ids() == list(range(20)), "an address that makes no sense is no error"
        assert browser.errors() == []

    def test_the_keyboard_is_enough(self, browser: Browser) -> None:
        browser.press("j")
        browser.press("j")
        assert "test-1" in browser.driver.switch_to.active_element.text
        browser.press("k")
        assert "test-0" in browser.driver.switch_to.active_element.text
        browser.press("n")
        assert browser.find("page").text == "page 2 of 3"
        browser.press("p")
        assert browser.find("page").text == "page 1 of 3"
        browser.press("/")
        browser.press("question 7?")
        assert browser.ids() == [7], "keys are letters in a field"

    def test_hostile_text_is_shown_and_does_nothing(self, driver: Any, tmp_path: Path) -> None:
        data = page_data([item(i, True, True, True, text=t) for i, t in enumerate(HOSTILE)])
        for one in data["tasks"][0]["items"]:
            one["answers"][0] = answer(one["input"], True, 1.0, one["input"])
        (tmp_path / "r.html").write_text(render(data, []))
        browser = Browser(driver, tmp_path / "r.html")
        assert driver.title == "sweep </title>: report"
        assert not driver.find_elements("css selector", "#items img, #items script")
        shown = driver.find_elements("css selector", "#items .input")
        assert [e.get_attribute("textContent") for e in shown] == list(HOSTILE)
        assert browser.errors() == []

    def test_ten_thousand_items_are_searched(self, driver: Any, tmp_path: Path) -> None:
        items = [item(i, i % 2 == 0, i % 3 == 0, i % 5 == 0) for i in range(10_000)]
        (tmp_path / "r.html").write_text(render(page_data(items), []))
        browser = Browser(driver, tmp_path / "r.html")
        browser.choose("method", "dss, tiny")
        browser.choose("show", "student right, teacher wrong")
        assert browser.find("count").text == "1,000 of 10,000 items"
        browser.find("search").send_keys("question 999")
        assert browser.ids() == [9995]
        assert len(driver.find_elements("css selector", "#items > li")) == 1

    @pytest.mark.parametrize("width", [360, 1280])
    def test_the_page_does_not_scroll_sideways(self, browser: Browser, width: int) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            script = "return document.documentElement.scrollWidth"
            assert browser.driver.execute_script(script) <= width
        finally:
            browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
