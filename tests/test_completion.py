"""Completion in the shell, as argcomplete's own function of bash asks for it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dss_jax.cli.main import COMMANDS
from dss_jax.core.registry import task_names

pytest.importorskip("argcomplete", reason="needs pip install argcomplete")


def completions(line: str, folder: Path) -> set[str]:
    """What the shell is offered after `line`."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = f"{shlex.quote(sys.executable)} -m dss_jax.cli.main 8>&1 9>/dev/null"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, **asked, "_ARGCOMPLETE_IFS": " ", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"},
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    return set(done.stdout.replace("\013", " ").split())


def test_what_a_shell_is_offered(tmp_path: Path) -> None:
    assert completions("dss ", tmp_path) == {*COMMANDS}
    assert completions("dss tr", tmp_path) == {"train"}
    assert completions("dss train --rat", tmp_path) == {"--rationales"}
    assert "--verbose" in completions("dss train --verb", tmp_path)
    assert completions("dss train --task ", tmp_path) == {*task_names()}
    assert completions("dss train --model t5_1_1_s", tmp_path) == {"t5_1_1_small"}
    assert completions("dss tasks show sva", tmp_path) == {"svamp"}
    assert completions("dss eval --decode ra", tmp_path) == {"rank"}
    assert completions("dss train --gin.Train.st", tmp_path) == {"--gin.Train.steps"}
    (tmp_path / "rows.csv").touch()
    assert completions("dss predict --input ro", tmp_path) == {"rows.csv"}
