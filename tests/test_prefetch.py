"""Items made in a thread: their order, errors, and that nothing is left behind."""

import threading
import time

import pytest

from dss_jax.train.loop import prefetch


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_items_come_in_order_and_only_so_many_ahead() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return 10 * number

    with prefetch(make, 3, 9, ahead=2) as items:
        deadline = time.monotonic() + 10
        while len(made) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [3, 4]
        assert [items(n) for n in range(3, 9)] == [30, 40, 50, 60, 70, 80]
        with pytest.raises(AssertionError, match="asked for 9"):
            items(9)
    assert made == [3, 4, 5, 6, 7, 8]
    assert not _threads()


def test_an_item_out_of_order_is_refused() -> None:
    with prefetch(lambda n: n, 0, 5) as items:
        assert items(0) == 0
        with pytest.raises(AssertionError, match="asked for 2, next is 1"):
            items(2)


def test_an_error_is_raised_where_its_item_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise OSError("the disk is gone")
        return number

    with prefetch(make, 0, 9) as items:
        assert [items(0), items(1)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            items(2)
    assert not _threads()


@pytest.mark.parametrize("asked", [0, 1, 4])
def test_leaving_early_ends_the_thread(asked: int) -> None:
    def stopped() -> None:
        with prefetch(lambda n: n, 0, 1000) as items:
            assert [items(n) for n in range(asked)] == list(range(asked))
            assert _threads() == ["prefetch_0"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not _threads()
