"""Whether a run is being trained now, by its heartbeat; without torch."""

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


def read_heartbeat(run: Path) -> dict[str, Any]:
    """What the run said of itself last; empty where it said nothing, or nothing that can be read."""
    try:
        found = read_json(run / HEARTBEAT)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_alive(run: Path) -> bool:
    """Whether a process is at work on the run in `run`: its heartbeat is younger than a minute, has not said that it
    ended, and, where it is of this machine, its process is there."""
    beat = read_heartbeat(run)
    if beat.get("state") not in ("training", "evaluating") or not _is_fresh(beat):
        return False
    return beat.get("host") != socket.gethostname() or _is_running(beat.get("pid"))


def _is_fresh(beat: Mapping[str, Any]) -> bool:
    with suppress(KeyError, TypeError, ValueError):  # TypeError also for a time without a zone
        return abs((datetime.now(UTC) - datetime.fromisoformat(beat["time"])).total_seconds()) < FRESH
    return False


def _is_running(pid: object) -> bool:
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:  # somebody else's
        return True
    except (OSError, OverflowError):
        return False
    return True
