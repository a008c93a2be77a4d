"""Where a run computes: device, threads, determinism, seeds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from sightline.core.errors import ConfigError, arg
from sightline.core.rng import derive_key
from sightline.engine.malloc import keep_heap


class Runtime:
    """The device and the settings of torch that decide which bits come out.

    `device` is "auto" (cuda, then mps, then cpu) or a torch device; `threads` the CPU threads, None for torch's own
    choice. Settings are global in torch, so they hold only inside `active()` and are put back after it.

    Raises ConfigError for a device that is not there."""

    def __init__(
        self, device: str = "auto", *, seed: int = 0, threads: int | None = None, deterministic: bool = True
    ) -> None:
        self.device = find_device(device)
        self.seed = seed
        self.threads = threads
        self.deterministic = deterministic
        generators = [torch.default_generator]
        if self.device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            generators.append(torch.cuda.default_generators[index])
        elif self.device.type == "mps":
            generators.append(torch.mps._get_default_mps_generator())
        self._generators = generators

    def reseed(self, step: int, purpose: str = "torch") -> None:
        """Sets torch's generators to a function of (seed, step): dropout in a step does not depend on earlier draws."""
        seed = derive_key(self.seed, step, purpose)
        for generator in self._generators:
            generator.manual_seed(seed)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Applies the settings for the length of the block."""
        threads = torch.get_num_threads()
        was, warned = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        benchmark = torch.backends.cudnn.benchmark
        fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            with keep_heap() if self.device.type == "cpu" else nullcontext():
                yield
        finally:
            torch.use_deterministic_algorithms(was, warn_only=warned)
            torch.backends.cudnn.benchmark = benchmark
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.set_num_threads(threads)


def find_device(name: str, key: str | None = None) -> torch.device:
    """The torch device of that name; "auto" is cuda, then mps, then cpu. Raises ConfigError when it is not there."""
    key = key or arg.device
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}: '{name}' is no torch device; expected auto, cpu, cuda, cuda:N or mps.") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"{key}: '{name}' is no device to train on; expected auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{key}: '{name}' is not there; this machine has {torch.cuda.device_count()} CUDA devices.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key}: 'mps' is not there on this machine.")
    return device
