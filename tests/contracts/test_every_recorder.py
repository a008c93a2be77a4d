"""The contract of every recorder, built-in or custom."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sightline.core.types import Recorder
from sightline.runs.recorders import CurveRecorder, JsonlRecorder, RecorderList, TensorBoardRecorder, as_recorder


class CustomRecorder:
    """A user-defined recorder with only `log` and `close`."""

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
    "custom": lambda: as_recorder(CustomRecorder()),
    "tee": lambda: RecorderList(JsonlRecorder(), TensorBoardRecorder(["val"]), as_recorder(CustomRecorder())),
}
VALUES = {"epoch": 0, "train_loss": float("nan"), "val_accuracy": 0.5, "lr": float("inf")}


@pytest.fixture(params=RECORDERS, ids=list(RECORDERS))
def make(request: pytest.FixtureRequest) -> Callable[[], Recorder]:
    return RECORDERS[request.param]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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


def test_events_with_nan_and_infinite_values_are_accepted(make: Callable[[], Recorder], tmp_path: Path) -> None:
    recorder = make()
    recorder.start(tmp_path, {"seed": 0}, None)
    for step in (1, 2):
        recorder.log(step, VALUES)
    recorder.flush()
    recorder.artifact(tmp_path / "exported")
    recorder.log(3, {})
    recorder.close()
    assert VALUES["val_accuracy"] == 0.5, "the recorder changed the values of the caller"


def points(folder: Path) -> dict[str, Any]:
    """The points in `log.jsonl` and in the files of TensorBoard."""
    result: dict[str, Any] = {}
    if (folder / "log.jsonl").exists():
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        result["log"] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    if (folder / "tensorboard").exists():
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            result[tag] = [(point.step, point.value) for point in events.Scalars(tag)]
    return result


@pytest.mark.parametrize("name", ["jsonl", "tee"])
def test_a_resumed_run_has_each_point_once(name: str, tmp_path: Path) -> None:
    """Three steps with a checkpoint at the second, then resumed from there. TensorBoard does not store epochs and takes
    the points of the second step from `log.jsonl`, so it needs that file."""
    make = RECORDERS[name]
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    for folder in (uninterrupted, resumed):
        folder.mkdir()
        recorder = make()
        recorder.start(folder, {}, None)
        for step in (1, 2, 3):
            recorder.log(step, {"epoch": 0, "loss": float(step)})
        recorder.close()
    recorder = make()
    recorder.start(resumed, {}, (2, 0))
    recorder.log(3, {"epoch": 0, "loss": 3.0})
    recorder.close()
    assert points(resumed) == points(uninterrupted)


def test_a_recorder_that_fails_to_close_does_not_keep_the_others_open(tmp_path: Path) -> None:
    class Fails(Recorder):
        def log(self, step: int, values: Mapping[str, float]) -> None: ...

        def close(self) -> None:
            raise OSError("full")

    custom = CustomRecorder()
    with pytest.raises(OSError, match="full"):
        RecorderList(Fails(), as_recorder(custom)).close()
    assert custom.seen == ["closed"]
    with pytest.raises(TypeError, match=r"the recorder dict has no `log\(step, values\)`"):
        as_recorder({})
