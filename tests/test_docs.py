"""What the documentation names is there: links, pages, settings, variables; and what is made from
the code is as the code is. Commands: test_docs_commands.py; the site: test_site.py.
"""

import ast
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from record_docs import DOCS, ROOT, SECTIONS, gin_reference, llms_txt, nav

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
SETTINGS = {f"{n}.{f.name}" for n, section in SECTIONS.items() for f in fields(section)}
SOURCE = "".join(f.read_text() for f in sorted((ROOT / "dss_jax").rglob("*.py")))
LAUNCHERS = "".join(f.read_text() for f in sorted((ROOT / "launch").iterdir()))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def spans(text: str) -> list[str]:
    """Inline code."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [" ".join(s.split()) for s in re.findall(r"`([^`]+)`", prose)]


def ours(page: Path) -> str:
    """A page without what it says of other programs: the first cells of tables of from_*.md."""
    foreign = r"^\|[^|]*\|" if page.name.startswith("from_") else r"$^"
    return re.sub(foreign, "|", page.read_text(), flags=re.M)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", link):
            name, _, anchor = link.partition("#")
            target = (page.parent / name) if name else page
            assert target.exists(), link
            # The site has nothing else.
            assert page.parent != DOCS or target.resolve().is_relative_to(DOCS), link
            assert not anchor or anchor in anchors(target), link


@each_page
def test_settings_are_fields_of_the_configuration(page: Path) -> None:
    text = ours(page)
    for section, name in re.findall(rf"\b({'|'.join(SECTIONS)})\.(\w+)", text):
        assert f"{section}.{name}" in SETTINGS, f"{section}.{name}"
    for span in spans(text):
        found = re.fullmatch(r"([A-Z]\w*[a-z]\w*)\.[a-z]\w*( = .*)?", span)
        assert not found or found[1] in SECTIONS, span


@each_page
def test_environment_variables_are_read_somewhere(page: Path) -> None:
    for name in re.findall(r"\bDSS_[A-Z_]+\b", page.read_text()):
        assert f'"{name}"' in SOURCE or re.search(rf"\b{name}\b", LAUNCHERS), name


@each_page
def test_python_blocks_parse(page: Path) -> None:
    for language, text in blocks(page.read_text()):
        if language == "python":
            ast.parse(text)


def test_each_page_has_a_place_on_the_site() -> None:
    listed = [page for _, page in nav()]
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))
    assert llms_txt().count("\n- [") == len(listed)


def test_the_reference_of_settings_is_new() -> None:
    file, text = DOCS / "gin_reference.md", gin_reference()
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), "UPDATE_GOLDEN=1, or python tests/record_docs.py, writes it"


def test_numbers_of_speed_are_measured_ones() -> None:
    """Those of docs/performance.md stand in benchmarks/README.md."""

    def numbers(text: str) -> set[str]:
        prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.M | re.S)
        return set(re.findall(r"(?<![\w.])\d(?:[\d,.]*\d)?", prose))

    measured = numbers((ROOT / "benchmarks" / "README.md").read_text())
    shown = numbers((DOCS / "performance.md").read_text())
    assert len(shown) > 50
    assert shown <= measured


def test_the_checks_find_something_to_check() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert len(set(re.findall(r"\b[A-Z]\w+\.\w+", text)) & SETTINGS) > 25
