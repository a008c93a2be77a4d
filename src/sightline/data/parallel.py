"""Work ahead, in order, by a few threads: what packing and loading share.

Threads and not processes: decoding, gathering and hashing release the interpreter's lock, nothing is pickled, any data
set and any transform will do, and a user's script needs no `if __name__ == "__main__"`."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from sightline.errors import adopt_names, current_names

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Turns:
    """How many blocks want quick turns, and what the interval was before the first."""

    lock = threading.Lock()
    inside = 0
    before = 0.0


_TURNS = _Turns()


@contextmanager
def quick_turns() -> Iterator[None]:
    """For the length of the block, threads hand the interpreter's lock on ten times as soon. With small files, whose
    decoding is over in microseconds, two threads do a quarter more."""
    with _TURNS.lock:
        if _TURNS.inside == 0:
            _TURNS.before = sys.getswitchinterval()
            sys.setswitchinterval(_TURNS.before / 10)
        _TURNS.inside += 1
    try:
        yield
    finally:
        with _TURNS.lock:
            _TURNS.inside -= 1
            if _TURNS.inside == 0:
                sys.setswitchinterval(_TURNS.before)


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool(threads: int) -> ThreadPoolExecutor:
    """Threads that leave torch's own to others: each runs torch's operations alone, as torch's DataLoader does. Whoever
    makes a pool calls `settle` when it is closed."""
    settle()
    return ThreadPoolExecutor(threads, initializer=_start, initargs=(current_names(),))


def _start(names: Mapping[str, str | None]) -> None:
    torch.set_num_threads(1)
    adopt_names(names)


def settle() -> None:
    """Makes the calling thread's number of torch threads that of threads to come. torch takes the last number any
    thread has set, and a thread of a pool sets one; the caller's own must be known before that."""
    torch.set_num_threads(torch.get_num_threads())


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`function(item)` for every item, in the items' order, at most `ahead` of them begun and not yet taken: memory
    stays flat. An exception comes where its result would have. Leaving the loop early drops what has not begun."""
    workers = pool(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(workers.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        waiting.clear()
        if not sys.is_finalizing():  # an iterator that was kept to the end of the program: the threads are gone
            workers.shutdown(wait=True, cancel_futures=True)
            settle()
