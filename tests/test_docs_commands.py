"""Every command in a fenced block of the documentation is accepted by what it calls.

Each line is held against the real parser, gin files, names of tasks and models, Makefile, extras
and launchers. What none of these can tell is on a page of RUN, whose test runs it, or is marked, on
the line before its block, with what this machine lacks: `<!-- needs: docker -->`.
"""

import argparse
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from record_docs import DOCS, ROOT
from test_docs import LAUNCHERS, PAGES, each_page, ours, spans
from test_launch_docs import LINES

from dss_jax.cli import gin_config, options
from dss_jax.cli.main import COMMANDS
from dss_jax.core import registry

RUN = {"predict.md": "test_docs_predict.py", "serve.md": "test_serve_docs.py"}
"""Page -> the test that runs all commands of it."""

NEEDS = {"beam", "docker", "gcloud", "network", "sky", "slurm", "t5x", "xpk"}
"""What a block may be marked with."""

TRUSTED = {"cd", "echo", "export", "pre-commit"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
LAUNCHED = [shlex.split(line.removeprefix("$ "), comments=True) for line in LINES]
MADE_BY_A_RUN = "/config.gin"
"""End of the names of gin files that are there only after another command."""


def command_blocks(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """(what a block needs, the words of its commands) of each block that has any: of a language of
    shells, after a prompt, or of no language and with a line that calls one of our programs.
    """
    blocks = r"(?:^<!-- needs: (\w+) -->\n)?^```(\w*)\n(.*?)^```$"
    for needs, language, block in re.findall(blocks, text, re.M | re.S):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif language not in ("bash", "sh"):
            calls = any(re.match(r"(\S*/)?(dss|make|pip|python) ", line) for line in lines)
            lines = lines if calls and not language else []
        found = [words for line in lines if (words := shlex.split(line, comments=True))]
        if found:
            yield needs, found


def program(words: list[str]) -> tuple[str, list[str]]:
    """The program of a command, and its arguments; variables that are set before it go."""
    start = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), 0)
    start += words[start] == "srun"
    return Path(words[start]).name, words[start + 1 :]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"dss {command}", allow_abbrev=False)
    import_module(f"dss_jax.cli.{command}").add_flags(parser)
    return parser


def flags_of(command: str) -> set[str]:
    return {flag for action in parser_of(command)._actions for flag in action.option_strings}


def check_names(args: argparse.Namespace, page: str, teacher: bool) -> None:
    """Tasks, models and methods are there, but for tasks that the page makes; a teacher's model is
    its server's.
    """
    folders = [folder for folder in getattr(args, "task_dir", []) if Path(folder).is_dir()]
    made = re.findall(r'(?:\bname="|^dss init )(\w+)', page, re.M)
    tasks = {*registry.task_names(folders), *made}
    models, methods = gin_config.gin_names("models"), gin_config.gin_names("methods")
    known = {"task": tasks, "extra_task": tasks, "method": methods, "methods": methods}
    if not teacher:
        known |= {"model": models, "models": models}
    for flag, names in known.items():
        for name in (getattr(args, flag, None) or "").split(","):
            assert not name or name in names, f"--{flag} {name}"


def check_dss(words: list[str], page: str) -> bool:
    command, *arguments = words
    if command.startswith("--"):
        return True
    assert command in COMMANDS, command
    args = options.parse(parser_of(command), arguments)
    check_names(args, page, teacher=command in ("extract", "init"))
    files = [f for f in getattr(args, "gin_file", []) if not f.endswith(MADE_BY_A_RUN)]
    if files or args.bindings:
        paths = options.search_paths(args) if hasattr(args, "gin_search_paths") else []
        gin_config.read([options.BASE_GIN_FILE, *files], args.bindings, paths).run()
    return True


def check_make(words: list[str], page: str) -> bool:
    for word in words:
        name, _, value = word.partition("=")
        assert word in TARGETS or (name == "EXTRAS" and value in EXTRAS), word
    return True


def check_pip(words: list[str], page: str) -> bool:
    """Other packages than ours it cannot tell."""
    files = {words[i + 1] for i, word in enumerate(words) if word in ("-r", "-c")}
    assert all((ROOT / file).exists() for file in files), files
    extras = [m[1] for word in words if (m := re.fullmatch(r"(?:dss-jax|\.)\[([\w-]+)\]", word))]
    assert set(extras) <= set(EXTRAS), extras
    return bool(files or extras)


def check_python(words: list[str], page: str) -> bool:
    """Scripts of the repository; modules it cannot tell."""
    script, *arguments = words
    if script == "-m":
        return False
    source = (ROOT / script).read_text()
    taken = set(re.findall(r'"(--\w+)"', source))
    if "add_run_flags" in source:
        taken |= flags_of("train")
    for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        assert flag in taken or flag.startswith("--gin."), flag
    return True


CHECKS: dict[str, Callable[[list[str], str], bool]] = {
    "dss": check_dss,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
}


def checked(words: list[str], page: str) -> bool:
    """Whether something here can tell if a command is right; an error where it is wrong."""
    if "|" in words:
        pipe = words.index("|")
        return checked(words[:pipe], page) and checked(words[pipe + 1 :], page)
    name, arguments = program(words)
    if name in CHECKS:
        return CHECKS[name](arguments, page)
    return name in TRUSTED or words in LAUNCHED


@each_page
def test_commands_are_accepted_or_marked(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = page.read_text()
    for needs, commands in command_blocks(text):
        assert not needs or needs in NEEDS, needs
        unknown = [words for words in commands if not checked(words, text)]
        told = needs or page.name in RUN
        assert told or not unknown, "say what the block needs, or run it in a test"
        assert unknown or not needs, f"all of it is checked: no mark ({needs}) is needed"


@pytest.mark.parametrize("page", RUN)
def test_pages_that_are_run_have_their_test(page: str) -> None:
    assert (DOCS / page).exists()
    assert f'"{page}"' in (ROOT / "tests" / RUN[page]).read_text()


@each_page
def test_commands_and_flags_in_the_text_are_known(page: Path) -> None:
    every_flag = set(re.findall(r"(--\w+)[ =|)]", LAUNCHERS))
    every_flag |= set().union(*(flags_of(command) for command in COMMANDS))
    for span in spans(ours(page)):
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


def test_the_checks_find_something_to_check() -> None:
    found = [
        words for page in PAGES for _, block in command_blocks(page.read_text()) for words in block
    ]
    names = [program(words)[0] for words in found]
    assert names.count("dss") > 90
    assert {"make", "pip", "python", "tpu_vm.sh"} <= set(names)
