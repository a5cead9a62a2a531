"""Batches made ahead of time, in a thread."""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """Items number `first`, `first` + 1, ... up to `end`, made in a thread while others are used.

    As a context it starts and ends the thread. Items come in order, each once; an error of `make`
    is raised where its item is asked for. What was made and not asked for is dropped at the end:
    as `make` is a pure function, the next run makes it again.
    """

    def __init__(
        self, make: Callable[[int], Item], first: int, end: int, *, ahead: int = 2
    ) -> None:
        """Nothing is made yet.

        Args:
          make: number -> item; called in the thread, in order.
          first, end: numbers from `first` to `end` - 1.
          ahead: how many items may be ready and not asked for.
        """
        self._make, self._next, self._end, self._ahead = make, first, end, ahead
        self._ready: deque[tuple[Item | None, BaseException | None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        for number in range(self._next, self._end):
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self._ahead)
                if self._closed:
                    return
            item, error = None, None
            try:
                item = self._make(number)
            except BaseException as raised:
                error = raised
            with self._changed:
                self._ready.append((item, error))
                self._changed.notify_all()
            if error is not None:
                return

    def __call__(self, number: int) -> Item:
        """The item of a number, which must be the next.

        Raises:
          Whatever `make` raised for it.
        """
        assert not self._closed, "the thread has ended"
        assert number == self._next < self._end, f"asked for {number}, next is {self._next}"
        with self._changed:
            self._changed.wait_for(lambda: self._ready)
            item, error = self._ready.popleft()
            self._changed.notify_all()
        self._next += 1
        if error is not None:
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the thread, after the item that it is at. More than once does no harm."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._ready.clear()
