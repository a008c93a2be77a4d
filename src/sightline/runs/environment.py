"""What a run was made with: versions, machine, the user's own code as git knows it."""

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
    """A JSON-ready description of Python, packages, torch's settings, and the git commit, changes and untracked files
    of `directory` (the current one by default). No environment variables: they may hold secrets."""
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
    """The machine for a reader: `2 cores Intel Xeon with AVX512, 24 GiB, no GPU, Linux 6.1`. Nothing names it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    capability = torch.backends.cpu.get_cpu_capability()
    vectors = "" if capability in ("DEFAULT", "NO AVX") else f" with {capability}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpu = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "no GPU"
    if not gpus and torch.backends.mps.is_available():
        gpu = "the GPU of the chip"
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
    """What the processor is sold as, without the marks of trade."""
    name = ""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
        name = found[1] if found else ""
    if not name and sys.platform == "darwin":
        name = (_run_command("sysctl", "-n", "machdep.cpu.brand_string") or "").strip()
    name = re.sub(r"\((R|TM|C)\)|\bCPU\b|\s@.*", " ", name or platform.processor() or platform.machine())
    return " ".join(name.split())


def _total_memory_bytes() -> int:
    """Bytes of the machine's memory; 0 where the system does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit, diff against it (up to 1 MiB) and untracked files of the repository around `directory`, if any."""
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


def _git(directory: Path, *words: str) -> str | None:
    return _run_command("git", "-C", str(directory), *words)


def _run_command(*words: str) -> str | None:
    """What a program prints; None where there is no such program, or it fails."""
    try:
        done = subprocess.run(  # noqa: S603 fixed words, no shell
            words, capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")
