"""Checks from its heartbeat file whether a run is being trained right now. Does not import torch."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sightline.core.files import read_json

HEARTBEAT = "heartbeat.json"
FRESH = 60.0
"""Age of a heartbeat in seconds from which on its run no longer counts as alive."""


def read_heartbeat(run: Path) -> dict[str, Any]:
    """Returns the content of the heartbeat file in the run directory `run`, or an empty dict if it is missing or
    unreadable."""
    try:
        heartbeat = read_json(run / HEARTBEAT)
    except (OSError, ValueError, RecursionError):
        return {}
    return heartbeat if isinstance(heartbeat, dict) else {}


def is_alive(run: Path) -> bool:
    """Returns whether a process is training or evaluating the run in the directory `run`.

    Its heartbeat must be less than a minute old and have the state `training` or `evaluating`. If it was written on
    this machine, the process must also exist."""
    heartbeat = read_heartbeat(run)
    if heartbeat.get("state") not in ("training", "evaluating") or not _is_fresh(heartbeat):
        return False
    return heartbeat.get("host") != socket.gethostname() or _is_running(heartbeat.get("pid"))


def _is_fresh(heartbeat: Mapping[str, Any]) -> bool:
    with suppress(KeyError, TypeError, ValueError):  # a time without a time zone raises TypeError
        return abs((datetime.now(UTC) - datetime.fromisoformat(heartbeat["time"])).total_seconds()) < FRESH
    return False


def _is_running(pid: object) -> bool:
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    if os.name == "nt":  # on Windows, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:  # the process exists and belongs to another user
        return True
    except (OSError, OverflowError):
        return False
    return True
