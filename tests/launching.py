"""Runs the launchers beside stand-ins of the programs that they call."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
STAND_INS = Path(__file__).parent / "stand_ins"

SECRETS = {
    "OPENAI_API_KEY": "sk-not-to-be-seen",
    "HF_TOKEN": "hf_not-to-be-seen",
    "AWS_SECRET_ACCESS_KEY": "aws-not-to-be-seen",
    "DSS_SERVE_TOKEN": "serve-not-to-be-seen",
}

TRAIN = shlex.split(
    "--task word_problems --model t5_1_1_tiny --gin.T5Config.dtype='\"bfloat16\"' "
    "--gin.Evaluate.every=5"
)


@dataclass
class Machine:
    """A folder with stand-ins on the PATH, and what they were called with."""

    folder: Path

    def program(self, name: str, text: str) -> Path:
        """Puts a program on the PATH."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, name: str, file: str) -> Path:
        """Puts one of tests/stand_ins on the PATH."""
        line = f'#!/bin/sh\nexec {sys.executable} -S -E {STAND_INS / file} "$@"\n'
        return self.program(name, line)

    def recorder(self, name: str, then: str = "") -> Path:
        """Puts a program on the PATH that records its call, and then does some shell."""
        record = "import json, sys; print(json.dumps(sys.argv[1:]))"
        call = f"{sys.executable} -S -E -c '{record}' {name} \"$@\""
        return self.program(name, f'#!/bin/bash\n{call} >>"$STAND_IN/calls"\n{then}\n')

    def train(self, **behaviour: object) -> None:
        """How `dss train` shall behave: steps, seconds a step, peers to wait for, error, status."""
        whole = self.folder / "train.json.part"
        whole.write_text(json.dumps({"steps": 5, "peers": 1, **behaviour}))
        # Runs that are under way look at `steps`.
        whole.replace(self.folder / "train.json")

    def calls(self, *of: str) -> list[list[str]]:
        """The recorded calls, those of the programs named; all, if none is."""
        file = self.folder / "calls"
        every = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        return [call for call in every if not of or call[0] in of]

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the tests' own but the way to Python."""
        return {
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "STAND_IN": str(self.folder),
            "POLL_SECONDS": "0.05",
            "LOG_DIR": str(self.folder / "logs"),
            "LANG": "C.UTF-8",
            # What an installed dss is to the launchers.
            "DSS": str(self.folder / "bin" / "dss"),
            **SECRETS,
        }

    def start(self, script: str, *arguments: str, cwd: Path = ROOT, **environment: str):
        """Starts a launcher."""
        return subprocess.Popen(
            [LAUNCH / script, *arguments],
            cwd=cwd,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def launch(
        self, script: str, *arguments: str, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess:
        """Runs a launcher to its end, and checks that nobody has seen a secret."""
        process = self.start(script, *arguments, cwd=cwd, **environment)
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{script} did not end:\n{out}\n{err}") from None
        seen = out + err + json.dumps(self.calls())
        for name, value in SECRETS.items():
            assert value not in seen, name
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def machine(folder: Path) -> Machine:
    """A machine with an installed dss: its `config` is the real one, its `train` a stand-in."""
    made = Machine(folder)
    (folder / "home").mkdir()
    made.program(
        "dss",
        f"#!/bin/sh\n"
        f'if [ "$1" = train ]; then exec {sys.executable} -S -E {STAND_INS / "train.py"} "$@"; fi\n'
        f"exec env PYTHONPATH={ROOT}:{os.pathsep.join(p for p in sys.path if p)} "
        f'{sys.executable} -m dss_jax.cli.main "$@"\n',
    )
    made.train()
    return made
