"""The package's messages: shown by the command line, on the first process, beside a bar."""

import io
import logging
import pickle
import re
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from dss_jax.cli import tables
from dss_jax.core import log, processes
from dss_jax.core.errors import Diverged, UsageError
from dss_jax.data.store import StoreDamaged


def test_messages_are_shown_within_and_nowhere_else(capsys, caplog) -> None:
    caplog.set_level(logging.INFO)
    with log.shown():
        logging.getLogger("dss_jax.some.module").info("inside %d", 1)
        logging.getLogger("dss_jax").warning("careful")
    logging.getLogger("dss_jax.some.module").info("outside")
    shown = capsys.readouterr()
    assert shown.out == "inside 1\n"
    assert shown.err == "careful\n"
    assert [r.message for r in caplog.records] == ["outside"]
    assert not log.LOGGER.handlers


HOSTILE = "a\x1b[31m\x9b1mred\x1b]0;title\x07\r\x08\u202eb\n\tc"
SHOWN = "a\ufffd[31m\ufffd1mred\ufffd]0;title\ufffd\ufffd\ufffd\ufffdb\n\tc"


def test_what_a_terminal_would_obey_is_shown(capsys) -> None:
    with log.shown():
        log.LOGGER.info("a server said %s", HOSTILE)
        try:
            raise RuntimeError(HOSTILE)
        except RuntimeError:
            log.LOGGER.warning("failed", exc_info=True)
    shown = capsys.readouterr()
    assert shown.out == f"a server said {SHOWN}\n"
    assert SHOWN in shown.err
    assert not set(shown.err + shown.out) & set("\x1b\x9b\r\u202e")


@pytest.mark.parametrize("error", [UsageError, Diverged, StoreDamaged])
def test_an_error_is_safe_to_print(error: type[Exception]) -> None:
    assert str(error(HOSTILE)) == SHOWN
    assert str(pickle.loads(pickle.dumps(error(HOSTILE)))) == SHOWN


def test_tables_show_markup_and_control_characters_as_they_are(capsys) -> None:
    tables.print_table(
        "[/red] \x1b[1m", ["[bold]n[/bold]", ":smile:"], [["[/red]", "x\x1b[2J"]], note="[/] \x9b"
    )
    tables.print_scores("t", {"test": {"examples": 1, "m": 2.0, "[/red]\x1b": 3.0}}, "m")
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x9b")
    for text in ("[/red] \ufffd[1m", "[bold]n[/bold]", ":smile:", "x\ufffd[2J", "[/] \ufffd"):
        assert text in out


def test_commands_print_foreign_text_by_what_makes_it_visible() -> None:
    """A plain `print` is for texts of ours: each is listed here."""
    allowed = {"main.py", "tables.py", "config.py", "doctor.py", "demo.py", "eval.py", "fit.py"}
    allowed |= {"ending.py", "prepare.py", "train.py"}
    folder = Path(tables.__file__).parent
    plain = {f.name for f in folder.glob("*.py") if re.search(r"(?<![\w.])print\(", f.read_text())}
    assert plain <= allowed


def test_only_the_first_process_speaks(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with log.shown():
        log.LOGGER.warning("from the second")
    assert capsys.readouterr() == ("", "")


def test_a_bar_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with log.shown(), tqdm(total=3, file=terminal, ncols=40) as bar:
        bar.update(1)
        log.LOGGER.info("a line")
        after = terminal.getvalue().rpartition("a line")[2]
    before = terminal.getvalue().partition("a line")[0]
    assert before.endswith("\r"), "the bar is wiped first"
    assert after.startswith("\n")
    assert "1/3" in after, "and drawn again"
