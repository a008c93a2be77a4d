"""The processes that train one run together: the rank of this one, and how they exchange values."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from sightline.core.errors import ConfigError, RunFailedError, first_line

T = TypeVar("T")
_PATIENCE = timedelta(minutes=30)
_GRACE = 30.0
"""Seconds that rank 0, when it fails, waits for the others to read why."""
_store: Any = None
_shared = 0


@dataclass(frozen=True)
class Ranks:
    """This process is `rank` of `world_size` that train one run together. Rank 0 alone writes."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """As torchrun sets it: RANK and WORLD_SIZE. Raises ConfigError for values that are no rank of a world."""
        found = []
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
            text = environment.get(name, default)
            if not text.isdecimal():
                raise ConfigError(f"the environment variable {name}: expected a whole number, found '{text}'.")
            found.append(int(text))
        rank, size = found
        if rank >= max(size, 1):
            raise ConfigError(f"the environment variable RANK: expected 0 to WORLD_SIZE - 1, {size - 1}, found {rank}.")
        return cls(rank, max(size, 1))

    @property
    def is_writer(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def broadcast(self, make: Callable[[], T]) -> T:
        """Calls `make` on rank 0 and gives its result, which JSON can hold, on every rank. What `make` raises is raised
        on rank 0, and as RunFailedError on the others. Every rank must call it, in the same order."""
        if self.world_size == 1:
            return make()
        key, store = _key(), self._connect()
        if self.rank == 0:
            try:
                made = make()
            except BaseException as error:
                store.set(key, json.dumps({"error": f"{type(error).__name__}: {first_line(error)}"}))
                if isinstance(error, Exception):
                    self._wait_for_readers(store, key)
                raise
            store.set(key, json.dumps({"value": made}))
            return made
        try:
            answer = json.loads(store.get(key))
            store.add(f"{key}/read", 1)
        except RuntimeError as error:  # torch's DistError and its kin: the time is up, or rank 0 has ended
            raise RunFailedError(f"rank {self.rank} got no answer from rank 0: {first_line(error)}") from error
        if "error" in answer:
            raise RunFailedError(f"rank 0 failed with {answer['error']}")
        value: T = answer["value"]
        return value

    def _wait_for_readers(self, store: Any, key: str) -> None:
        """Rank 0 is about to end, and the store with it: a rank that connects later would wait for it in vain."""
        until = time.monotonic() + _GRACE
        while store.add(f"{key}/read", 0) < self.world_size - 1 and time.monotonic() < until:
            time.sleep(0.05)

    @contextmanager
    def barrier(self) -> Iterator[None]:
        """A block that every rank leaves when all have come to its end. An error in the block of one is RunFailedError
        in the others, which do not wait for it any longer."""
        if self.world_size == 1:
            yield
            return
        key, store = _key(), self._connect()
        try:
            yield
        except BaseException as error:
            store.set(f"{key}/all", f"{type(error).__name__}: {first_line(error)}")
            raise
        if store.add(f"{key}/arrived", 1) == self.world_size:
            store.set(f"{key}/all", "")
        try:
            failed = store.get(f"{key}/all").decode()
        except RuntimeError as error:
            raise RunFailedError(f"rank {self.rank} waited in vain for the others: {first_line(error)}") from error
        if failed:
            raise RunFailedError(f"another rank failed with {failed}")

    def _connect(self) -> Any:
        """The key-value store of this launch, where MASTER_ADDR and MASTER_PORT say, by default port 29500 here. Under
        torchrun it is the one of its agent; a process group that is made later uses the same."""
        global _store  # noqa: PLW0603 one connection a process
        if _store is None:
            from torch.distributed import TCPStore  # type: ignore[attr-defined]

            host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "29500")
            serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            try:
                _store = TCPStore(
                    host, int(port), self.world_size, serves, _PATIENCE, wait_for_workers=False, multi_tenant=True
                )
            except (RuntimeError, ValueError) as error:
                raise RunFailedError(
                    f"rank {self.rank} of {self.world_size} cannot reach the others at {host}:{port} (MASTER_ADDR, "
                    f"MASTER_PORT): {first_line(error)}"
                ) from error
        return _store


def _key() -> str:
    """The next key, which no other exchange of this launch uses. The store of torchrun's agent outlives a restart of
    its workers, so the number of the restart is part of it."""
    global _shared  # noqa: PLW0603 the store is one for the process
    _shared += 1
    return f"sightline/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_shared}"
