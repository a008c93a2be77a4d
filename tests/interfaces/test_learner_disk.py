"""The learner on a disk that fills up: an error in its own terms, and the same call resumes."""

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


def test_a_checkpoint_that_cannot_be_written_is_named_and_the_same_call_resumes(tmp_path: Path) -> None:
    original = checkpointing.save_checksummed

    def full(path: Path, content: dict[str, Any], *rest: Any) -> None:
        if content["epoch"] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, content, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing, "save_checksummed", full)
        with pytest.raises(RunFailedError, match=r"No space left .* Free disk space and resume from it\.\nIn epoch"):
            train(tf.StandardModel(network()), tmp_path / "resumed", 3)
    learner, uninterrupted = tf.StandardModel(network()), tf.StandardModel(network())
    train(learner, tmp_path / "resumed", 3)
    train(uninterrupted, tmp_path / "uninterrupted", 3)
    assert same(learner.model.state_dict(), uninterrupted.model.state_dict())


def test_without_space_for_a_checkpoint_training_does_not_start(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
        with pytest.raises(RunFailedError, match=r"Nothing was trained yet\. Free disk space, or .* with model_dir\."):
            train(tf.StandardModel(network()), tmp_path, 1)
