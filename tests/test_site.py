"""The documentation as a site: it builds without a warning, and loads nothing from elsewhere."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browsing import Page, chromium
from record_docs import DOCS, ROOT, llms_txt, nav

pytest.importorskip("zensical", reason='needs pip install -e ".[docs]"')


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds from, elsewhere."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    (folder / "docs" / "llms.txt").write_text(llms_txt())
    return folder


def build(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(project: Path) -> Path:
    done = build(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return project / "site"


def test_each_page_is_there(site: Path) -> None:
    for _, page in nav():
        assert (site / page).with_suffix(".html").exists(), page
    assert "](train.md): " in (site / "llms.txt").read_text()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = (
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\" >]+)|<link\b[^>]*\bhref=\"?([^\" >]+)"
    )
    for file in site.rglob("*.html"):
        for found in re.findall(loads, file.read_text()):
            address = "".join(found)
            assert not re.match(r"(?:\w+:)?//", address), (file.name, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()), style


def test_words_are_found(site: Path) -> None:
    found = json.loads((site / "search.json").read_text())
    assert any("max_bad_steps" in item["text"] for item in found["items"])


@pytest.mark.parametrize("wrong", ["[x](nowhere.md)", "[x](train.md#nowhere)"])
def test_a_broken_link_fails_the_build(project: Path, wrong: str) -> None:
    page = project / "docs" / "fit.md"
    text = page.read_text()
    page.write_text(f"{text}\n{wrong}\n")
    try:
        assert build(project).returncode != 0
    finally:
        page.write_text(text)


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    """Where the site is served: its search wants HTTP."""
    handler = partial(SimpleHTTPRequestHandler, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as driver:
        yield Page(driver)


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_pages_follow_the_system(url: str, browser: Page, scheme: str, dark: bool) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.driver.get(f"{url}/methods.html")
    ask = browser.driver.execute_script
    colour = ask("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) == dark
    assert ask("return document.images[0].naturalWidth") > 0
    loaded = ask("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert loaded
    assert all(address.startswith(url) for address in loaded)
    assert browser.errors() == []
