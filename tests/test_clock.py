"""What a command says by itself, with -v, and while it compiles."""

import io
import sys
import time

import pytest
from toy import heard

from dss_jax.cli import train
from dss_jax.cli.main import main
from dss_jax.core.errors import UsageError
from dss_jax.run import clock

TINY = ["train", "--task", "word_problems", "--model", "t5_1_1_tiny"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SHOWN_AFTER", 0.05)
    monkeypatch.setattr(clock, "LINE_AFTER", 0.1)


@pytest.mark.parametrize("after", [0.1, 60.0])
def test_without_a_terminal_it_is_a_line_or_two(
    after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "LINE_AFTER", after)
    with heard() as said, clock.clocked("compiling"):
        time.sleep(0.3)
    assert said[:-1] == (["compiling ..."] if after < 1 else [])
    assert said[-1].startswith("compiling: 0.")
    assert said[-1].endswith(" s")


def test_what_takes_no_time_is_not_worth_a_line() -> None:
    with heard() as said, clock.clocked("compiling"):
        pass
    assert said == []


def test_a_terminal_has_a_clock_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with heard() as said, clock.clocked("compiling"):
        time.sleep(1.3)
    assert "compiling ... 00:0" in screen.getvalue()
    assert screen.getvalue().endswith("\r"), "the next line is written over it"
    assert [line.partition(":")[0] for line in said] == ["compiling"]


def test_what_was_stopped_has_not_taken_so_long() -> None:
    def told() -> None:
        with clock.clocked("compiling"):
            time.sleep(0.3)
            raise KeyboardInterrupt

    with heard() as said, pytest.raises(KeyboardInterrupt):
        told()
    assert said == ["compiling ..."]


@pytest.mark.parametrize("flag", [[], ["-v"], ["--verbose"]])
def test_the_configuration_is_printed_where_it_is_asked_for(
    flag: list[str], tmp_path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def stop(*_: object) -> None:
        raise UsageError("far enough")

    monkeypatch.setattr(train, "_open_store", stop)
    assert main([*TINY, "--output_dir", str(tmp_path / "run"), *flag]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert ("Train.steps = 10000" in lines) is bool(flag)
    assert bool(lines) is bool(flag)
