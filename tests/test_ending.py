"""A signal whose exception Python drops comes again."""

import gc
import signal
import subprocess
import sys
import time

import pytest

from dss_jax.cli.ending import ends_soon
from dss_jax.core import signals


class _Told:
    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def _lost(number: int) -> None:
    with ends_soon():
        _Told(number)
        gc.collect()
        time.sleep(5)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_in_a_destructor_ends_the_command_all_the_same(
    number: int, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "told", [])
    with pytest.raises(raised):
        _lost(number)
    assert len(signals.told) > 1, "the first one was dropped"
    assert {*signals.told} == {number}


FAILING = """
import asyncio, sys, threading
from concurrent.futures import ThreadPoolExecutor
from dss_jax.cli.ending import ends_soon
from dss_jax.core import signals

def fail(_=None):
    raise RuntimeError("loop is closed")

with ends_soon(), ThreadPoolExecutor(1) as pool:
    signals.told += map(int, sys.argv[1:])
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    pool.submit(int).add_done_callback(fail)
    loop = asyncio.new_event_loop()
    loop.call_exception_handler({"message": "never retrieved"})
    loop.close()
"""


@pytest.mark.parametrize("told", [[], [signal.SIGTERM]])
def test_what_threads_raise_is_said_but_not_after_a_stop(told: list[int]) -> None:
    command = [sys.executable, "-c", FAILING, *(str(int(number)) for number in told)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("RuntimeError: loop is closed") == (0 if told else 2), done.stderr
    assert done.stderr.count("never retrieved") == (0 if told else 1)
    assert not (told and done.stderr)
