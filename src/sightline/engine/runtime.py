"""The device, CPU threads, determinism and random seeds of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from sightline.core.errors import ConfigError, arg
from sightline.core.rng import derive_key
from sightline.engine.malloc import keep_heap

_DEVICES = "one of: auto, cpu, cuda, cuda:N, mps"


class Runtime:
    """The device and the torch settings that numerical results depend on.

    `device` is a torch device or "auto" (cuda, then mps, then cpu). `threads` is the number of CPU threads; None keeps
    torch's number. `deterministic` selects deterministic algorithms where torch has them. These settings are global in
    torch, so they apply only within `active()` and are restored after it.

    Raises ConfigError if the device is unknown or not available."""

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
        """Seeds torch's generators from (seed, step, purpose), so that a step does not depend on earlier draws."""
        seed = derive_key(self.seed, step, purpose)
        for generator in self._generators:
            generator.manual_seed(seed)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Applies the settings within the block and restores the previous ones after it."""
        threads = torch.get_num_threads()
        deterministic, warn_only = (
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
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.set_num_threads(threads)


def find_device(name: str, key: str | None = None) -> torch.device:
    """Returns the torch device called `name`; "auto" is cuda, then mps, then cpu.

    Raises ConfigError, which names the config key `key`, if the device is unknown or not available."""
    key = key or arg.device
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}: '{name}' is not a torch device. Expected {_DEVICES}.") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"{key}: '{name}' is not a supported device. Expected {_DEVICES}.")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"{key}: '{name}' is not available; this machine has {count} CUDA devices.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key}: 'mps' is not available on this machine.")
    return device
