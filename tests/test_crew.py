"""Threads that share out a task."""

import gc
import threading
import time

import pytest

from conftest import interrupted
from manyfit.native.crew import Crew


def nothing() -> None:
    """Ends at once."""


def test_each_thread_does_it() -> None:
    """At the same time, and it is done when the call comes back."""
    both = threading.Barrier(2)
    done: list[int] = []

    def work() -> None:
        both.wait(10)
        done.append(threading.get_ident())

    Crew(2).do(work, 2, nothing)
    assert len(set(done)) == 2


def test_what_one_raises_is_raised_once_all_have_ended() -> None:
    """And the threads go on with the next task."""
    crew, first, ended = Crew(2), [True], list[bool]()

    def work() -> None:
        if first:
            first.clear()
            raise ValueError("broken")
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(ValueError, match="broken"):
        crew.do(work, 2, nothing)
    assert ended == [True]
    crew.do(work, 2, nothing)
    assert len(ended) == 3


def test_its_threads_end_with_it() -> None:
    """Of thousands of populations none are left."""
    before = set(threading.enumerate())
    crew = Crew(3)
    crew.do(nothing, 3, nothing)
    its = set(threading.enumerate()) - before
    assert len(its) == 3
    del crew
    gc.collect()
    for thread in its:
        thread.join(10)
    assert not any(thread.is_alive() for thread in its)


def test_ctrl_c_locks_nothing() -> None:
    """At whatever moment it comes: who is at it is told to stop and waited for, and the next task is done."""
    crew, busy, stopped = Crew(2), list[int](), list[bool]()

    def work() -> None:
        busy.append(1)
        time.sleep(1e-5)
        busy.pop()

    def act() -> None:
        try:
            crew.do(work, 2, lambda: stopped.append(True))
        finally:
            assert not busy

    assert interrupted(act, 3.0) > 100
    assert stopped
    ended = threading.Thread(target=lambda: crew.do(work, 2, nothing), daemon=True)
    ended.start()
    ended.join(20)
    assert not ended.is_alive()
