"""The environment of a run: package versions, machine, and the git state of the user's code."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

_MAX_DIFF_CHARS = 1 << 20


def collect_environment(directory: Path | None = None) -> dict[str, Any]:
    """Returns a JSON-ready description of the command, Python, packages, machine, torch's settings and git state.

    The git state is that of the repository around `directory`, by default the current directory. Environment variables
    are not included, since they may hold secrets."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "machine_words": machine_summary(),
        "torch": {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cuda": torch.version.cuda,
            "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "packages": dict(sorted(packages.items(), key=lambda item: str(item[0]).lower())),
        "git": git_state(directory or Path.cwd()),
    }


def machine_summary() -> str:
    """Returns a description such as `2 cores Intel Xeon with AVX512, 24 GiB, no GPU, Linux 6.1`, without host name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    capability = torch.backends.cpu.get_cpu_capability()
    vectors = "" if capability in ("DEFAULT", "NO AVX") else f" with {capability}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpu = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "no GPU"
    if not gpus and torch.backends.mps.is_available():
        gpu = "integrated GPU (MPS)"
    memory = _total_memory_bytes()
    release = re.match(r"\d+(\.\d+)?", platform.release())
    parts = [
        f"{cores} core{'s' if cores > 1 else ''} {_processor()}{vectors}",
        *([f"{memory / 2**30:.0f} GiB"] if memory else []),
        gpu,
        f"{platform.system()}{' ' + release[0] if release else ''}",
    ]
    return ", ".join(parts)


def _processor() -> str:
    """Returns the processor's product name, without trademark signs and clock rate."""
    name = ""
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
        name = match[1] if match else ""
    if not name and sys.platform == "darwin":
        name = (_run_command("sysctl", "-n", "machdep.cpu.brand_string") or "").strip()
    name = re.sub(r"\((R|TM|C)\)|\bCPU\b|\s@.*", " ", name or platform.processor() or platform.machine())
    return " ".join(name.split())


def _total_memory_bytes() -> int:
    """Returns the machine's memory in bytes, or 0 if the system does not report it."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def git_state(directory: Path) -> dict[str, Any] | None:
    """Returns commit, diff and untracked files of the git repository around `directory`, or None without one.

    `diff` is against the commit and has at most 2**20 characters (`diff_cut` says whether it was cut), `untracked` at
    most 1000 file names."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(directory, "diff", "HEAD") or ""
    untracked = _git(directory, "ls-files", "--others", "--exclude-standard") or ""
    return {
        "commit": commit.strip(),
        "diff": diff[:_MAX_DIFF_CHARS],
        "diff_cut": len(diff) > _MAX_DIFF_CHARS,
        "untracked": untracked.splitlines()[:1000],
    }


def _git(directory: Path, *arguments: str) -> str | None:
    return _run_command("git", "-C", str(directory), *arguments)


def _run_command(*command: str) -> str | None:
    """Returns the standard output of a program, or None if it does not exist or fails."""
    try:
        done = subprocess.run(  # noqa: S603 fixed arguments, no shell
            command, capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")
