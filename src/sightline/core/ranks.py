"""The rank of this process among those that train one run together, and how they exchange values."""

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
"""Seconds that rank 0, after an error, waits for the other ranks to read it."""
_store: Any = None
_exchanges = 0


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among `world_size` processes that train one run together. Only rank 0 writes files."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Reads RANK and WORLD_SIZE, which torchrun sets. Raises ConfigError if they are invalid."""
        values = []
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
            text = environment.get(name, default)
            if not text.isdecimal():
                raise ConfigError(f"the environment variable {name}: expected an integer >= 0, found '{text}'.")
            values.append(int(text))
        rank, size = values
        if rank >= max(size, 1):
            raise ConfigError(
                f"the environment variable RANK: expected an integer below WORLD_SIZE ({size}), found {rank}."
            )
        return cls(rank, max(size, 1))

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def broadcast(self, make: Callable[[], T]) -> T:
        """Calls `make` on rank 0 and returns its result, which must be JSON-serialisable, on every rank.

        An exception from `make` is raised on rank 0, and as RunFailedError on the others. Every rank must call this, in
        the same order."""
        if self.world_size == 1:
            return make()
        key, store = _key(), self._connect()
        if self.rank == 0:
            try:
                result = make()
            except BaseException as error:
                store.set(key, json.dumps({"error": f"{type(error).__name__}: {first_line(error)}"}))
                if isinstance(error, Exception):
                    self._wait_for_readers(store, key)
                raise
            store.set(key, json.dumps({"value": result}))
            return result
        try:
            answer = json.loads(store.get(key))
            store.add(f"{key}/read", 1)
        except RuntimeError as error:  # torch's DistError: a timeout, or rank 0 has ended
            raise RunFailedError(f"rank {self.rank} got no answer from rank 0: {first_line(error)}") from error
        if "error" in answer:
            raise RunFailedError(f"rank 0 failed with {answer['error']}")
        value: T = answer["value"]
        return value

    def _wait_for_readers(self, store: Any, key: str) -> None:
        """Waits up to `_GRACE` seconds for the other ranks to read an error. The store ends with rank 0, and a rank
        that connects after that would wait until the timeout."""
        until = time.monotonic() + _GRACE
        while store.add(f"{key}/read", 0) < self.world_size - 1 and time.monotonic() < until:
            time.sleep(0.05)

    @contextmanager
    def barrier(self) -> Iterator[None]:
        """A block at whose end every rank waits for the others. An error in the block of one rank ends the wait of the
        others with RunFailedError."""
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
            raise RunFailedError(f"rank {self.rank} got no answer from the other ranks: {first_line(error)}") from error
        if failed:
            raise RunFailedError(f"another rank failed with {failed}")

    def _connect(self) -> Any:
        """Returns the key-value store of this launch, at MASTER_ADDR and MASTER_PORT (by default 127.0.0.1:29500).

        Under torchrun it is the store of its agent. A process group that is created later uses the same one."""
        global _store  # noqa: PLW0603 one connection per process
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
                    f"rank {self.rank} of {self.world_size} cannot reach the other ranks at {host}:{port} "
                    f"(MASTER_ADDR, MASTER_PORT): {first_line(error)}"
                ) from error
        return _store


def _key() -> str:
    """Returns a new key for one exchange. It contains torchrun's restart count, because the store of its agent outlives
    a restart of the workers."""
    global _exchanges  # noqa: PLW0603 one store per process
    _exchanges += 1
    return f"sightline/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_exchanges}"
