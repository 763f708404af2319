"""Threads that share out a task.

Told and heard by queues: a lock of `concurrent.futures` that Ctrl-C finds in `with`, before its release, stays locked,
and whoever asks for it next waits for ever.
"""

import queue
import threading
import weakref
from collections.abc import Callable

Work = Callable[[], None]
Tasks = queue.SimpleQueue[tuple[Work, list[BaseException | None], queue.SimpleQueue[None]] | None]


class Crew:
    """Threads, which end when nobody has it any more.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._tasks: Tasks = queue.SimpleQueue()
        for _ in range(threads):
            threading.Thread(target=_serve, args=[self._tasks], daemon=True).start()
        weakref.finalize(self, _end, self._tasks, threads)

    def do(self, work: Work, times: int, stop: Work) -> None:
        """Have it done by so many threads, and wait for them all.

        Args:
            work: Done by each.
            times: At most as many as there are threads.
            stop: After which whoever is at it soon ends; called when the wait is interrupted.

        Raises:
            BaseException: What one of them raised; or what interrupted the wait, once they have ended.
        """
        asked: list[None] = []
        ended: list[BaseException | None] = []
        told: queue.SimpleQueue[None] = queue.SimpleQueue()
        try:
            asked.extend(map(self._tasks.put, [(work, ended, told)] * times))  # no Python in it: all of them or none
            while len(ended) < times:
                told.get()
        except BaseException:
            stop()
            while len(ended) < len(asked):
                told.get()
            raise
        for error in filter(None, ended):
            raise error


def _end(tasks: Tasks, threads: int) -> None:
    for _ in range(threads):
        tasks.put(None)


def _serve(tasks: Tasks) -> None:
    while task := tasks.get():
        work, ended, told = task
        try:
            work()
            ended.append(None)
        except BaseException as error:
            ended.append(error)
        told.put(None)
        del task, work, ended, told  # what they hold is held until the next task, else
