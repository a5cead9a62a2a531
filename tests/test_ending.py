"""A signal whose exception Python drops comes again."""

import gc
import signal
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
