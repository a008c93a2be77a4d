"""Applies a function to items in several threads, in order and ahead of use, for packing and loading.

Threads are used instead of processes because decoding, gathering and hashing release the GIL. Nothing is pickled, every
dataset and transform works, and a user's script needs no `if __name__ == "__main__"`."""

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
    """The number of active blocks, and the switch interval before the first of them, in seconds."""

    lock = threading.Lock()
    active_blocks = 0
    before = 0.0


_SWITCH_INTERVAL = _SwitchInterval()


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """Divides the thread switch interval of the interpreter by ten within the block.

    With small files, which are decoded in microseconds, two threads process a quarter more."""
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
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Returns a pool of threads that each run torch operations on a single thread, like the workers of a DataLoader.

    Call `freeze_torch_thread_count` after closing the pool."""
    freeze_torch_thread_count()
    return ThreadPoolExecutor(threads, initializer=_init_thread, initargs=(current_argument_names(),))


def _init_thread(names: Mapping[str, str | None]) -> None:
    import torch

    torch.set_num_threads(1)
    adopt_argument_names(names)


def freeze_torch_thread_count() -> None:
    """Makes the calling thread's number of torch threads the one that new threads start with.

    A new thread starts with the number that was set last in any thread, and the threads of a pool set it to 1. So this
    is called before a pool is created and after it is closed."""
    import torch

    torch.set_num_threads(torch.get_num_threads())


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, max_pending: int
) -> Generator[Result, None, None]:
    """Yields `function(item)` for every item, in order, computed by `threads` threads.

    At most `max_pending` items are submitted and not yet yielded, which bounds memory. An exception is raised in place
    of its result. Closing the generator early cancels the items that have not started."""
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
        if not sys.is_finalizing():  # when the interpreter exits, the threads have ended already
            workers.shutdown(wait=True, cancel_futures=True)
            freeze_torch_thread_count()
