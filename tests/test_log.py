"""The package's messages: shown by the command line, on the first process, beside a bar."""

import io
import logging
import sys

import pytest
from tqdm import tqdm

from dss_jax.core import log, processes


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
