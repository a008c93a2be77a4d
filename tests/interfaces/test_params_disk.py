"""The params-dict trainer on a disk that fills up: an error in its own terms, and the same call resumes."""

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
    """Makes a writing function fail as on a full disk for content for which `full` is true."""
    original = getattr(module, name)

    def write(path: Path, content: dict[str, Any], *rest: Any) -> None:
        if full(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, content, *rest)

    patch.setattr(module, name, write)


FULL = "[Errno 28] No space left on device"
CHECKPOINT = (
    f"The checkpoint of step 3 could not be written to 'LOGS/checkpoints': {FULL}. The checkpoint of step 0 is valid. "
    f"Free disk space and resume from it."
)
EPOCH = (
    f"'LOGS/model_epoch_2.pt' could not be written: {FULL}. Free disk space; the same call to train then resumes "
    f"from the last checkpoint."
)
RECORD = f"logdir: cannot write to 'LOGS': {FULL}. Free some space, or choose another logdir."


@pytest.mark.parametrize(
    ("module", "name", "full", "message"),
    [
        (checkpointing, "save_checksummed", lambda content: content["step"] == 3, CHECKPOINT),
        (files, "save_checksummed", lambda content: content["epoch"] == 2, EPOCH),
        (directory, "write_json", lambda content: "fingerprint" in content, RECORD),
    ],
)
def test_a_file_that_cannot_be_written_is_named_and_the_same_call_resumes(
    module: Any, name: str, full: Any, message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_when(module, name, full, patch)
        with pytest.raises(RunFailedError) as error:
            run(small(), data, tmp_path / "logs")
    assert str(error.value) == message.replace("LOGS", str(tmp_path / "logs"))
    done, model = run(small(), data, tmp_path / "logs")
    assert done is True
    _, uninterrupted = run(small(), data, tmp_path / "uninterrupted")
    assert weights(model) == weights(uninterrupted)
    assert (tmp_path / "logs" / "model_epoch_2.pt").exists()


def test_without_space_for_a_checkpoint_training_does_not_start(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
        with pytest.raises(
            RunFailedError, match=r"Nothing was trained yet\. Free disk space, or .* with logdir\."
        ) as error:
            run(small(), data, tmp_path / "logs")
    assert error.value.__notes__ == ["In epoch 0, batch 0 (step 1). No checkpoint was written yet."]
    done, _ = run(small(), data, tmp_path / "logs")
    assert done is True


def test_a_real_disk_that_fills_up(data: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m") as disk:
        calls = iter(range(100))

        def filling(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if next(calls) == 7:
                fill(disk / "ballast")
            return train_step(*args, **kwargs)

        with pytest.raises(RunFailedError, match=r"No space left on device.* the same call to train"):
            run(small(), data, disk / "logs", step=filling)
        (disk / "ballast").unlink()
        done, model = run(small(), data, disk / "logs")
        assert done is True
    _, uninterrupted = run(small(), data, tmp_path / "uninterrupted")
    assert weights(model) == weights(uninterrupted)
