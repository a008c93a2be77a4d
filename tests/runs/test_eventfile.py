"""Event files that are written without a thread, as TensorBoard reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.disks import fill, small_disk
from sightline.runs.eventfile import EventFile
from sightline.runs.recorders import JsonlRecorder


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of each scalar, as TensorBoard reads them."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_point(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()  # created with the first point
    for step in range(1, 2001):
        file.add(step, {"loss/train": 1 / step, "Ümlaut/train": float(step)})
    file.add(2000, {"loss/test": float("nan")})
    file.close()
    points = curves(tmp_path / "logs")
    assert points["loss/train"] == [(step, pytest.approx(1 / step, rel=1e-6)) for step in range(1, 2001)]
    assert points["Ümlaut/train"][-1] == (2000, 2000.0)
    assert points["loss/test"][0][0] == 2000


def test_a_later_file_replaces_the_points_from_its_purge_step_on(tmp_path: Path) -> None:
    first = EventFile(tmp_path)
    for step in range(10):
        first.add(step, {"loss": 1.0})
    first.close()
    second = EventFile(tmp_path, purge_step=6)
    second.add(6, {"loss": 2.0})
    second.close()
    assert curves(tmp_path)["loss"] == [(step, 1.0) for step in range(6)] + [(6, 2.0)]


def test_flushed_points_can_be_read_while_the_file_is_open(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.add(1, {"loss": 1.0})
    file.add(2, {"loss": 2.0})
    file.flush()
    assert curves(tmp_path)["loss"] == [(1, 1.0), (2, 2.0)]
    file.add(3, {"loss": 3.0})
    file.close()
    file.close()
    assert len(curves(tmp_path)["loss"]) == 3


def log_much(log: Callable[[int, dict[str, float]], None]) -> None:
    """Logs more points than a small disk has space for."""
    for step in range(2, 5000):
        log(step, {"loss": 1.0})


def test_a_full_disk_is_an_error_with_the_file_name(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as place:
        board, log = EventFile(place), JsonlRecorder()
        log.start(place, {}, None)
        board.add(1, {"loss/train": 1.0})
        log.log(1, {"loss": 1.0})
        board.flush()
        (written,) = place.glob("events.out.*")
        fill(place / "ballast")
        with pytest.raises(OSError, match=rf"No space left on device: '{written}'"):
            log_much(board.add)
        with pytest.raises(OSError, match=rf"No space left on device: '{place / 'log.jsonl'}'"):
            log_much(log.log)
        (place / "ballast").unlink()
        board.close()
        log.close()
