"""What every recorder must do, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sightline.core.types import Recorder
from sightline.runs.recorders import CurveRecorder, JsonlRecorder, RecorderList, TensorBoardRecorder, as_recorder


class Own:
    """A user's, with `log` and `close` alone."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.seen.append((step, dict(values)))

    def close(self) -> None:
        self.seen.append("closed")


RECORDERS: dict[str, Callable[[], Recorder]] = {
    "jsonl": JsonlRecorder,
    "tensorboard": lambda: TensorBoardRecorder(["train", "val"]),
    "params": CurveRecorder,
    "own": lambda: as_recorder(Own()),
    "tee": lambda: RecorderList(JsonlRecorder(), TensorBoardRecorder(["val"]), as_recorder(Own())),
}
VALUES = {"epoch": 0, "train_loss": float("nan"), "val_accuracy": 0.5, "lr": float("inf")}


@pytest.fixture(params=RECORDERS, ids=list(RECORDERS))
def make(request: pytest.FixtureRequest) -> Callable[[], Recorder]:
    return RECORDERS[request.param]


def files(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def test_it_is_a_recorder(make: Callable[[], Recorder]) -> None:
    assert isinstance(make(), Recorder)


def test_starting_writes_nothing(make: Callable[[], Recorder], tmp_path: Path) -> None:
    recorder = make()
    recorder.start(tmp_path, {"seed": 0}, None)
    recorder.close()
    again = make()
    again.start(tmp_path, {"seed": 0}, (3, 1))
    again.flush()
    again.close()
    assert files(tmp_path) == {}


def test_every_event_is_taken_with_values_that_are_no_numbers(make: Callable[[], Recorder], tmp_path: Path) -> None:
    recorder = make()
    recorder.start(tmp_path, {"seed": 0}, None)
    for step in (1, 2):
        recorder.log(step, VALUES)
    recorder.flush()
    recorder.artifact(tmp_path / "exported")
    recorder.log(3, {})
    recorder.close()
    assert VALUES["val_accuracy"] == 0.5, "the values are the caller's"


def points(place: Path) -> dict[str, Any]:
    """What the log and TensorBoard show."""
    found: dict[str, Any] = {}
    if (place / "log.jsonl").exists():
        rows = [json.loads(line) for line in (place / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        found["log"] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    if (place / "tensorboard").exists():
        events = EventAccumulator(str(place / "tensorboard"))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [(point.step, point.value) for point in events.Scalars(tag)]
    return found


@pytest.mark.parametrize("name", ["jsonl", "tee"])
def test_a_resumed_run_has_each_point_once(name: str, tmp_path: Path) -> None:
    """Three steps, a checkpoint at the second, and then again from there. TensorBoard, which knows no epochs, takes the
    points of the second step from `log.jsonl`, so it needs that beside it."""
    make = RECORDERS[name]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for place in (whole, parts):
        place.mkdir()
        recorder = make()
        recorder.start(place, {}, None)
        for step in (1, 2, 3):
            recorder.log(step, {"epoch": 0, "loss": float(step)})
        recorder.close()
    recorder = make()
    recorder.start(parts, {}, (2, 0))
    recorder.log(3, {"epoch": 0, "loss": 3.0})
    recorder.close()
    assert points(parts) == points(whole)


def test_one_that_fails_does_not_keep_the_others_open(tmp_path: Path) -> None:
    class Fails(Recorder):
        def log(self, step: int, values: Mapping[str, float]) -> None: ...

        def close(self) -> None:
            raise OSError("full")

    own = Own()
    with pytest.raises(OSError, match="full"):
        RecorderList(Fails(), as_recorder(own)).close()
    assert own.seen == ["closed"]
    with pytest.raises(TypeError, match=r"the recorder dict has no `log\(step, values\)`"):
        as_recorder({})
