"""The params-dict trainer on a disk that fills up: told in its own words, and the same call goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from helpers.disks import fill, small_disk
from helpers.params_digits import small_digits
from helpers.params_user import run, small, train_step
from sightline.core.errors import RunFailedError
from sightline.engine.checkpoint import writer as checkpointing
from sightline.params import files
from sightline.runs import directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_digits(tmp_path_factory.mktemp("small") / "data")


def weights(model: nn.Module) -> list[Any]:
    return [value.tolist() for value in model.state_dict().values()]


def full_when(module: Any, name: str, full: Callable[[dict[str, Any]], bool], patch: pytest.MonkeyPatch) -> None:
    """From now on what writes fails for such content, as on a full disk."""
    true = getattr(module, name)

    def writes(path: Path, content: dict[str, Any], *rest: Any) -> None:
        if full(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true(path, content, *rest)

    patch.setattr(module, name, writes)


FULL = "[Errno 28] No space left on device"
CHECKPOINT = (
    f"the checkpoint of step 3 could not be written to 'LOGS/checkpoints': {FULL}. The checkpoint of step 0 is whole: "
    f"make room, and resume from it."
)
EPOCH = (
    f"'LOGS/model_epoch_2.pt' could not be written: {FULL}. Make room; the same call of train then goes on from the "
    f"last checkpoint."
)
RECORD = f"logdir: cannot write to 'LOGS': {FULL}. Make room, or choose another logdir."


@pytest.mark.parametrize(
    ("module", "name", "full", "told"),
    [
        (checkpointing, "save_checksummed", lambda content: content["step"] == 3, CHECKPOINT),
        (files, "save_checksummed", lambda content: content["epoch"] == 2, EPOCH),
        (directory, "write_json", lambda content: "fingerprint" in content, RECORD),
    ],
)
def test_what_cannot_be_written_is_named_and_the_same_call_goes_on(
    module: Any, name: str, full: Any, told: str, data: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_when(module, name, full, patch)
        with pytest.raises(RunFailedError) as error:
            run(small(), data, tmp_path / "logs")
    assert str(error.value) == told.replace("LOGS", str(tmp_path / "logs"))
    done, model = run(small(), data, tmp_path / "logs")
    assert done is True
    _, straight = run(small(), data, tmp_path / "straight")
    assert weights(model) == weights(straight)
    assert (tmp_path / "logs" / "model_epoch_2.pt").exists()


def test_without_room_for_a_checkpoint_nothing_begins(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
        with pytest.raises(RunFailedError, match=r"Nothing was trained yet; make room, or .* with logdir\.") as told:
            run(small(), data, tmp_path / "logs")
    assert told.value.__notes__ == ["In epoch 0, batch 0 (step 1). No checkpoint was written yet."]
    done, _ = run(small(), data, tmp_path / "logs")
    assert done is True


def test_a_disk_that_really_fills_up(data: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m") as place:
        calls = iter(range(100))

        def filling(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if next(calls) == 7:
                fill(place / "ballast")
            return train_step(*args, **kwargs)

        with pytest.raises(RunFailedError, match=r"No space left on device.* the same call of train"):
            run(small(), data, place / "logs", step=filling)
        (place / "ballast").unlink()
        done, model = run(small(), data, place / "logs")
        assert done is True
    _, straight = run(small(), data, tmp_path / "straight")
    assert weights(model) == weights(straight)
