"""Applies a function to items ahead of their use, in order, in a few threads; packing and loading share it.

Threads and not processes: decoding, gathering and hashing release the interpreter's lock, nothing is pickled, any data
set and any transform will do, and a user's script needs no `if __name__ == "__main__"`."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from sightline.core.errors import adopt_argument_names, current_argument_names

Item = TypeVar("Item")
Result = TypeVar("Result")


class _SwitchInterval:
    """How many blocks want quick turns, and what the interval was before the first."""

    lock = threading.Lock()
    active_blocks = 0
    before = 0.0


_SWITCH_INTERVAL = _SwitchInterval()


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """For the length of the block, threads hand the interpreter's lock on ten times as soon. With small files, whose
    decoding is over in microseconds, two threads do a quarter more."""
    with _SWITCH_INTERVAL.lock:
        if _SWITCH_INTERVAL.active_blocks == 0:
            _SWITCH_INTERVAL.before = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH_INTERVAL.before / 10)
        _SWITCH_INTERVAL.active_blocks += 1
    try:
        yield
    finally:
        with _SWITCH_INTERVAL.lock:
            _SWITCH_INTERVAL.active_blocks -= 1
            if _SWITCH_INTERVAL.active_blocks == 0:
                sys.setswitchinterval(_SWITCH_INTERVAL.before)


def available_cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that leave torch's own to others: each runs torch's operations alone, as torch's DataLoader does. Whoever
    makes a pool calls `freeze_torch_thread_count` when it is closed."""
    freeze_torch_thread_count()
    return ThreadPoolExecutor(threads, initializer=_init_thread, initargs=(current_argument_names(),))


def _init_thread(names: Mapping[str, str | None]) -> None:
    import torch

    torch.set_num_threads(1)
    adopt_argument_names(names)


def freeze_torch_thread_count() -> None:
    """Makes the calling thread's number of torch threads that of threads to come. torch takes the last number any
    thread has set, and a thread of a pool sets one; the caller's own must be known before that."""
    import torch

    torch.set_num_threads(torch.get_num_threads())


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, max_pending: int
) -> Generator[Result, None, None]:
    """`function(item)` for every item, in the items' order, at most `max_pending` of them begun and not yet taken:
    memory stays flat. An exception comes where its result would have. Leaving the loop early drops what has not
    begun."""
    workers = thread_pool(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(workers.submit(function, item))
            if len(waiting) >= max_pending:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        waiting.clear()
        if not sys.is_finalizing():  # an iterator that was kept to the end of the program: the threads are gone
            workers.shutdown(wait=True, cancel_futures=True)
            freeze_torch_thread_count()
