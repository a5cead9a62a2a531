"""What the documentation names is there: links, commands and their flags, settings, variables."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from dss_jax.cli import gin_config, options
from dss_jax.cli.main import COMMANDS
from dss_jax.core import config
from dss_jax.core.sweep_config import Sweep

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SECTIONS = {**config.SECTIONS, "Sweep": Sweep}
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


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"dss {command}", allow_abbrev=False)
    import_module(f"dss_jax.cli.{command}").add_flags(parser)
    return parser


def flags_of(command: str) -> set[str]:
    return {flag for action in parser_of(command)._actions for flag in action.option_strings}


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of each `dss` line in a fenced block; settings of variables before it go."""
    for _, block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?([A-Z_]+=\S+ )*(\S*/)?dss ", line):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                start = next(i for i, word in enumerate(words) if Path(word).name == "dss")
                yield words[start + 1 :]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", link):
            name, _, anchor = link.partition("#")
            target = (page.parent / name) if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@each_page
def test_command_lines_are_accepted(page: Path) -> None:
    for command, *arguments in command_lines(page.read_text()):
        if command.startswith("--"):
            continue
        assert command in COMMANDS, command
        parser = parser_of(command)
        args = options.parse(parser, arguments)
        for binding in args.bindings:
            assert binding.partition(" = ")[0] in SETTINGS, binding
        for kind in ("model", "method"):
            # A teacher's model is its server's.
            name = getattr(args, kind, None) if command not in ("extract", "init") else None
            assert name is None or name in gin_config.gin_names(f"{kind}s"), name


@each_page
def test_commands_and_flags_in_the_text_are_known(page: Path) -> None:
    every_flag = set(re.findall(r"(--\w+)[ =|)]", LAUNCHERS))
    every_flag |= set().union(*(flags_of(command) for command in COMMANDS))
    for span in spans(page.read_text()):
        words = span.split()
        if words[0] == "dss" and len(words) > 1:
            assert words[1] in COMMANDS or words[1].startswith("--"), span
            known = flags_of(words[1])
        elif words[0].startswith("--"):
            known = every_flag
        else:
            continue
        for flag in (w.partition("=")[0] for w in words if w.startswith("--")):
            assert flag in known or flag.startswith(("--gin.", "--xla_")), span


@each_page
def test_settings_are_fields_of_the_configuration(page: Path) -> None:
    text = page.read_text()
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


def test_the_checks_find_something_to_check() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert len(list(command_lines(text))) > 15
    assert len(set(re.findall(r"\b[A-Z]\w+\.\w+", text)) & SETTINGS) > 25
