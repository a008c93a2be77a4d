"""When checkpoints are written and which are kept; after any failure a valid checkpoint exists."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.stop_at import StopAt
from sightline.core.errors import ArtifactError, DivergedError, NonFiniteLossError, RunFailedError
from sightline.core.types import Batch, Loader, StepOutput, TrainState
from sightline.engine.checkpoint import writer as checkpointing
from sightline.engine.checkpoint.content import checkpoint_content, load_checkpoint, newest_valid, read_checkpoint
from sightline.engine.checkpoint.writer import Checkpointer, kept
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Callback, Trainer


class Batches(Loader):
    """Six batches per epoch; `seek` only sets an index."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.all = [
            Batch(torch.randn(4, 1, 2, 2, generator=generator), torch.randint(0, 2, (4,), generator=generator))
            for _ in range(6)
        ]
        self.first = 0

    def __len__(self) -> int:
        return len(self.all)

    def seek(self, epoch: int, batch: int = 0, position: Any = None) -> None:
        self.first = batch

    def __iter__(self) -> Iterator[Batch]:
        first, self.first = self.first, 0
        return iter(self.all[first:])


class OneWay(Batches):
    """A loader that cannot start in the middle of an epoch."""

    def position(self) -> None:
        return None


def trainer(
    folder: Path, *callbacks: Callback, epochs: int = 2, train: Any = None, lr: float = 0.1, **more: Any
) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))
    limit = {"divergence_threshold": more.pop("threshold", None), "log_every": more.pop("log_every", 50)}
    checkpointer = Checkpointer(folder / "last.ckpt", folder / "best.ckpt", "val_loss", "min", **more)
    batches = Batches() if train is None else train
    return Trainer(
        SupervisedTask(nn.CrossEntropyLoss()), state, batches, {"val": Batches()}, max_epochs=epochs,
        callbacks=(checkpointer, *callbacks), **limit,
    )  # fmt: skip


def step_of(path: Path) -> int:
    step: int = read_checkpoint(path)["step"]
    return step


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_newest_checkpoints_and_those_of_every_few_epochs_are_kept(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=5, keep=3, keep_every=2).fit()
    assert names(tmp_path) == [
        "best.ckpt", "epoch-0002.ckpt", "epoch-0004.ckpt", "last-1.ckpt", "last-2.ckpt", "last.ckpt"
    ]  # fmt: skip
    assert [step_of(path) for path in kept(tmp_path / "last.ckpt")] == [30, 24, 18]
    assert [step_of(tmp_path / f"epoch-000{epoch}.ckpt") for epoch in (2, 4)] == [12, 24]
    assert read_checkpoint(tmp_path / "best.ckpt")["kind"] == "best"


def test_a_smaller_keep_removes_older_checkpoints(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=3, keep=3).fit()
    trainer(tmp_path, epochs=2, keep=1).fit()
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]


def test_checkpoints_every_few_steps_do_not_change_the_run(tmp_path: Path) -> None:
    plain, frequent = trainer(tmp_path / "a"), trainer(tmp_path / "b", every_steps=1, keep=99)
    plain.fit()
    frequent.fit()
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state.model.parameters(), frequent.state.model.parameters(), strict=True)
    )
    steps = [step_of(path) for path in kept(tmp_path / "b" / "last.ckpt")]
    assert steps == sorted(steps, reverse=True)
    assert set(steps) <= set(range(13))
    assert {0, 6, 12} <= set(steps)  # those at the end of an epoch are never skipped


def test_a_checkpoint_is_written_after_some_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now)

    class Clock(Callback):
        """Adds a minute per step, and waits for the writer thread so that no checkpoint is late."""

        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            nonlocal now
            now += 60.0
            trainer.callbacks[0]._wait()  # type: ignore[attr-defined]

    run = trainer(tmp_path, Clock(), epochs=1, every_minutes=2.0, keep=99)
    run.fit()
    assert [step_of(path) for path in kept(tmp_path / "last.ckpt")] == [6, 5, 3, 0]


def test_a_requested_checkpoint_is_written_and_training_continues(tmp_path: Path) -> None:
    written: list[int] = []

    class Ask(Callback):
        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            if trainer.state.step == 4:
                trainer.request_checkpoint()

    run = trainer(tmp_path, Ask(), epochs=1, keep=9, requested=lambda: written.append(step_of(tmp_path / "last.ckpt")))
    assert not run.fit().interrupted
    assert written == [4]
    assert [step_of(path) for path in kept(tmp_path / "last.ckpt")] == [6, 4, 0]


def test_a_checkpoint_requested_during_an_evaluation_does_not_wait_for_its_end(tmp_path: Path) -> None:
    seen: list[str] = []

    class Evaluated(Batches):
        def __iter__(self) -> Iterator[Batch]:
            for number, batch in enumerate(self.all):
                if number == 2:
                    run.request_checkpoint()
                if number == 3:
                    seen.append(f"step {step_of(tmp_path / 'last.ckpt')} in {run.phase}")
                yield batch

    run = trainer(tmp_path, epochs=1)
    run.evals = {"val": Evaluated()}
    run.fit()
    assert seen == ["step 6 in val"]


def test_a_loader_that_cannot_start_in_mid_epoch_gives_a_warning_and_resumes_at_an_epoch(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="OneWay cannot start in the middle of an epoch"):
        result = trainer(tmp_path, StopAt(9), train=OneWay(), every_steps=2).fit()
    assert result.interrupted
    assert step_of(tmp_path / "last.ckpt") == 6
    uninterrupted = trainer(tmp_path / "uninterrupted")
    uninterrupted.fit()
    again = trainer(tmp_path, train=OneWay())
    load_checkpoint(tmp_path / "last.ckpt", again.state)
    with pytest.warns(UserWarning, match="resumes at the start of the interrupted epoch"):
        again.fit()
    assert torch.equal(again.state.model[1].weight, uninterrupted.state.model[1].weight)  # type: ignore[index]


def test_the_previous_checkpoint_is_used_when_the_newest_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, epochs=3, keep=3).fit()
    for name, length in (("last.ckpt", 700), ("last-1.ckpt", 0)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:length])
    path, content = newest_valid(kept(tmp_path / "last.ckpt"))
    warnings = caplog.messages
    assert (path.name, content["step"]) == ("last-2.ckpt", 6)
    assert len(warnings) == 2
    assert "last.ckpt' is not a checkpoint or is damaged" in warnings[0]
    assert "renamed to 'last.ckpt.damaged'. Resuming from the previous one, 'last-1.ckpt'" in warnings[0]
    assert kept(tmp_path / "last.ckpt") == [path]
    (path).write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"last-2\.ckpt' is not a checkpoint"):
        newest_valid([path])


@pytest.mark.rows("X01")
def test_a_valid_checkpoint_exists_at_every_moment_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked before and after each file operation that puts a new one in place."""
    seen: list[int] = []

    def look(*_: Any) -> None:
        if (tmp_path / "last.ckpt").exists() or (tmp_path / "last-1.ckpt").exists():
            seen.append(newest_valid(kept(tmp_path / "last.ckpt"))[1]["step"])
        else:
            seen.append(-1)

    for owner, name in ((Path, "replace"), (Path, "unlink"), (checkpointing.os, "link")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, original=original, **k: (look(), original(*a, **k), look())[1])
    trainer(tmp_path, epochs=4, keep=3).fit()
    monkeypatch.undo()
    assert seen[0] == -1
    later = seen[seen.index(0) :]
    assert later == sorted(later)
    assert later[-1] == 24


def test_temporary_files_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=1).fit()
    (tmp_path / ".last.ckpt.0123456789abcdef").write_bytes(b"half")
    (tmp_path / ".best.ckpt.0123456789abcdef").write_bytes(b"half")
    (tmp_path / ".last.ckpt.mine").write_bytes(b"not ours")
    trainer(tmp_path, epochs=1).fit()
    assert names(tmp_path) == [".last.ckpt.mine", "best.ckpt", "last-1.ckpt", "last.ckpt"]


def test_a_step_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training continues while a checkpoint is written, and the file contains the state of its step."""
    gate, original = threading.Event(), checkpointing.save_checksummed

    def slow(path: Path, content: Any, *rest: Any) -> None:
        if content["step"] == 2:
            assert gate.wait(60)
        original(path, content, *rest)

    monkeypatch.setattr(checkpointing, "save_checksummed", slow)

    class Open(Callback):
        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            if trainer.state.step == 5:
                assert step_of(tmp_path / "last.ckpt") == 0
                gate.set()

    run = trainer(tmp_path, Open(), epochs=1, every_steps=2, keep=9)
    run.fit()
    reference = trainer(tmp_path / "reference", StopAt(2))
    reference.fit()
    written = {step_of(path): path for path in kept(tmp_path / "last.ckpt")}
    saved = read_checkpoint(written[2])["model"]["1.weight"]
    assert torch.equal(saved, reference.state.model[1].weight)  # type: ignore[index]


def test_an_error_in_the_writer_thread_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = checkpointing.save_checksummed

    def broken(path: Path, content: Any, *rest: Any) -> None:
        if content["step"] == 2:
            raise OSError(28, "No space left on device")
        original(path, content, *rest)

    monkeypatch.setattr(checkpointing, "save_checksummed", broken)
    with pytest.raises(RunFailedError, match=r"step 2 could not be written.*The checkpoint of step 0 is valid"):
        trainer(tmp_path, every_steps=2).fit()
    assert step_of(tmp_path / "last.ckpt") == 0


def test_training_does_not_start_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(RunFailedError, match=r"The disk is full: the checkpoint of step 0 .*Nothing was trained yet"):
        trainer(tmp_path).fit()
    assert names(tmp_path) == []


def test_the_restored_position_of_a_loader_is_kept_by_the_first_save(tmp_path: Path) -> None:
    """If the newest file is damaged, a checkpoint is saved before the position of the loader is restored."""

    class Stateful(OneWay):
        def __init__(self) -> None:
            super().__init__()
            self.place = 0

        def seek(self, epoch: int, batch: int = 0, position: Any = None) -> None:
            if position:
                self.place = position["place"] % 6

        def position(self) -> dict[str, int]:  # type: ignore[override]
            return {"place": self.place}

        def __iter__(self) -> Iterator[Batch]:
            first, self.place = self.place, self.place
            for batch in self.all[first:]:
                self.place += 1
                yield batch
            self.place = 0

    uninterrupted = trainer(tmp_path / "uninterrupted", train=Stateful())
    uninterrupted.fit()
    trainer(tmp_path / "cut", StopAt(3), train=Stateful()).fit()
    (tmp_path / "cut" / "last.ckpt").rename(tmp_path / "cut" / "last-1.ckpt")
    again = trainer(tmp_path / "cut", train=Stateful())
    load_checkpoint(tmp_path / "cut" / "last-1.ckpt", again.state)
    assert again.fit().steps == 12
    assert torch.equal(again.state.model[1].weight, uninterrupted.state.model[1].weight)  # type: ignore[index]


def test_a_failed_last_write_is_an_exception_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every callback gets `on_exception`, even if that of another callback fails."""
    seen: list[str] = []
    original = checkpointing.save_checksummed

    def broken(path: Path, content: Any, *rest: Any) -> None:
        if content["step"] == 6:
            raise OSError(28, "No space left on device")
        original(path, content, *rest)

    class Fails(Callback):
        def on_exception(self, trainer: Trainer, error: BaseException) -> None:
            raise KeyError("mine")

    class Cleans(Callback):
        def on_fit_end(self, trainer: Trainer) -> None:
            seen.append("end")

        def on_exception(self, trainer: Trainer, error: BaseException) -> None:
            seen.append(type(error).__name__)

    monkeypatch.setattr(checkpointing, "save_checksummed", broken)
    with pytest.raises(RunFailedError, match="step 6") as caught:
        trainer(tmp_path, Fails(), Cleans(), epochs=1).fit()
    assert seen == ["RunFailedError"]
    assert "KeyError: 'mine'" in caught.value.__notes__[0]


def test_a_kill_between_best_and_last_loses_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trainer(tmp_path, epochs=1, lr=0.01)
    first.fit()
    one, best = first.state.best, (tmp_path / "best.ckpt").read_bytes()
    original = checkpointing.save_checksummed

    def killed(path: Path, content: Any, *rest: Any) -> None:
        if path.name == "last.ckpt" and content["step"] == 12:
            raise KeyboardInterrupt
        original(path, content, *rest)

    second = trainer(tmp_path, lr=0.01)
    load_checkpoint(tmp_path / "last.ckpt", second.state)
    monkeypatch.setattr(checkpointing, "save_checksummed", killed)
    with pytest.raises(KeyboardInterrupt):
        second.fit()
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "best.ckpt")["best"] < one
    third = trainer(tmp_path, StopAt(7), lr=0.01)
    load_checkpoint(tmp_path / "last.ckpt", third.state)
    third.fit()
    assert (tmp_path / "best.ckpt").read_bytes() == best
    assert not (tmp_path / "best-1.ckpt").exists()


def test_a_state_that_cannot_be_resumed_gives_a_warning_at_the_start(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=1)
    run.state.callbacks["mine"] = threading.Thread
    with pytest.warns(UserWarning, match="This run cannot be resumed, .*'threading.Thread'"):
        run.fit()


def test_tied_weights_are_written_once_and_the_content_is_a_copy(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    content = checkpoint_content(TrainState(model))
    assert content["model"]["0.weight"] is content["model"]["1.weight"]
    with torch.no_grad():
        model[0].weight.zero_()
    assert content["model"]["0.weight"].abs().sum() > 0
    assert content["model"]._metadata[""]["version"] == 1


def test_memory_formats_are_kept() -> None:
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert checkpoint_content(TrainState(model))["model"]["weight"].stride() == model.weight.stride()


def test_a_loss_above_the_limit_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"The training loss rose to .* at step \d+, above trainer\.div") as caught:
        trainer(tmp_path, epochs=9, lr=30.0, threshold=5.0, log_every=3).fit()
    assert not isinstance(caught.value, NonFiniteLossError)
    assert trainer(tmp_path / "fine", threshold=5.0, log_every=3).fit().epochs == 2
