"""Work in other threads, ahead of the network and behind it, in order and within bounds."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

PATIENCE = 10.0
"""How long a run that was broken off waits, in seconds, for whoever reads its results."""

PAUSE = 0.005
"""In seconds: how long whoever waits for drawings, or for room, sleeps before it looks again: that disturbs others."""

RECORDER = "lrp-record"
"""The name of the thread that records."""

Item = TypeVar("Item")
Intermediate = TypeVar("Intermediate")
Result = TypeVar("Result")


def threads_at_work(count: int, name: str, begin: Callable[[], object] = lambda: None) -> ThreadPoolExecutor:
    """Return an executor whose threads have begun: later, where memory has run out, none could.

    Args:
        count: how many.
        name: how their names begin.
        begin: called in each first.

    Raises:
        RuntimeError: a thread cannot be started.
    """
    executor = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=begin)
    all_there = threading.Barrier(count)
    try:
        for future in [executor.submit(all_there.wait) for _ in range(count)]:
            future.result()
    except BaseException:
        all_there.abort()  # those that wait would wait for ever
        executor.shutdown(wait=False)
        raise
    return executor


def in_order(
    executor: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: Callable[[], int]
) -> Generator[Result]:
    """Yield ``work(item)`` for each item, in order, while up to ``ahead()`` further items are worked on.

    Items are taken only as results are asked for, so that memory stays flat however many there are. When the consumer
    stops, what has not begun is cancelled.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(work, item))
            while len(waiting) > ahead():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class Behind(Generic[Item, Intermediate, Result]):
    """Works on items in threads, and hands the results on in order, each as soon as it and those before it are ready.

    Work has two steps with threads of their own: ``draw``, which needs the processor, and ``write``, which mostly waits
    for the disk. ``sink`` runs in a thread of its own, so that neither what is computed next nor a signal to the main
    thread holds up or breaks off what is being recorded.
    """

    def __init__(
        self,
        draw: Callable[[Item], Intermediate],
        write: Callable[[Intermediate], Result],
        sink: Callable[[Result], object],
        *,
        threads: int,
        writers: int,
        ahead: Callable[[], int],
        late: Callable[[Result], object] = lambda _: None,
    ) -> None:
        """Prepare: so many ``threads`` draw, and so many ``writers`` write.

        :meth:`wait_for_room` waits while ``ahead()`` items are on their way. ``late`` is given, in place of ``sink``,
        what was begun before that raised something.
        """
        self._draw = draw
        self._write = write
        self._sink = sink
        self._late = late
        self._drawers = threads_at_work(threads, "lrp-draw")
        self._writers = threads_at_work(writers, "lrp-write")
        self._drawing: list[Future[Intermediate]] = []
        self._ahead = ahead
        self._queue: queue.SimpleQueue[tuple[Future[Intermediate], Future[Result]] | None] = queue.SimpleQueue()
        self._problem: BaseException | None = None
        # A daemon: where the reader of our output stands still, the thread may never end.
        self._thread = threading.Thread(target=self._hand_on, name=RECORDER, daemon=True)

    def put(self, item: Item) -> None:
        """Take an item; never waits."""
        drawn = self._drawers.submit(self._draw, item)
        self._drawing = [future for future in self._drawing if not future.done()] + [drawn]
        self._queue.put((drawn, self._writers.submit(lambda: self._write(drawn.result()))))

    def wait_for_room(self) -> None:
        """Return when fewer than ``ahead()`` items are on their way; raises what a step or ``sink`` raised."""
        self.check()
        while self._queue.qsize() >= self._ahead():
            time.sleep(PAUSE)
            self.check()

    def wait_until_drawn(self) -> None:
        """Return when all items have been drawn, which may be still to be written; raises what went wrong with them.

        Looks again and again, since a signal would leave the locks locked that ``concurrent.futures.wait`` takes.
        """
        while not all(future.done() for future in self._drawing):
            time.sleep(PAUSE)
        drawn, self._drawing = self._drawing, []
        self.check()  # first: then what has not begun is cancelled
        for future in drawn:
            future.result()

    def check(self) -> None:
        """Raise what a step or ``sink`` raised."""
        if self._problem is not None:
            raise self._problem

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish what was put in; after an error or a signal, too, if that does not take long."""
        in_haste = error is not None
        self._queue.put(None)
        self._thread.join(PATIENCE if in_haste else None)
        for executor in (self._drawers, self._writers):
            executor.shutdown(wait=not in_haste, cancel_futures=in_haste or self._problem is not None)
        if error is None:
            self.check()

    def _hand_on(self) -> None:
        begun: list[Future[Result]] = []
        while (item := self._queue.get()) is not None:
            drawn, written = item
            if self._problem is not None:
                if not drawn.cancel():  # it may have left something on the disk, or will
                    begun.append(written)
                continue
            try:
                self._sink(written.result())
            except BaseException as error:  # raised where it can be dealt with
                self._problem = error
        for written in begun:
            with contextlib.suppress(Exception):
                self._late(written.result())
