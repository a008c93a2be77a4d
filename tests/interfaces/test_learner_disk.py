"""The learner on a disk that fills up: told in its own words, and the same call goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import sightline.learner as tf
from helpers.learner_problem import network, same, train
from sightline.core.errors import RunFailedError
from sightline.engine.checkpoint import writer as checkpointing


def test_a_checkpoint_that_cannot_be_written_is_named_and_the_same_call_goes_on(tmp_path: Path) -> None:
    true = checkpointing.save_checksummed

    def full(path: Path, content: dict[str, Any], *rest: Any) -> None:
        if content["epoch"] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true(path, content, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing, "save_checksummed", full)
        with pytest.raises(RunFailedError, match=r"No space left .* make room, and resume from it\.\nIn epoch"):
            train(tf.StandardModel(network()), tmp_path / "cut", 3)
    learner, straight = tf.StandardModel(network()), tf.StandardModel(network())
    train(learner, tmp_path / "cut", 3)
    train(straight, tmp_path / "straight", 3)
    assert same(learner.model.state_dict(), straight.model.state_dict())


def test_without_room_for_a_checkpoint_nothing_begins(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
        with pytest.raises(RunFailedError, match=r"Nothing was trained yet; make room, or .* with model_dir\."):
            train(tf.StandardModel(network()), tmp_path, 1)
