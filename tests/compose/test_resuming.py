"""Resuming a run: the files it needs, the changes it accepts, and its errors when something has changed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import waiting
from helpers.commands import Command
from helpers.disks import fill, small_disk
from helpers.processes import ended, started, until
from helpers.stop_at import StopAt
from sightline.compose.assemble import assemble, resume
from sightline.core.errors import ArtifactError, RunFailedError
from sightline.core.types import Batch, FitResult, TrainState
from sightline.engine.checkpoint import writer as checkpointing
from sightline.engine.checkpoint.content import checkpoint_content, read_checkpoint
from sightline.engine.checkpoint.file import save_checksummed
from sightline.engine.checkpoint.writer import Checkpointer
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Callback, Trainer


def config(folder: Path, name: str = "run", **more: Any) -> dict[str, Any]:
    """A tiny network on the embedded digits, 18 steps per epoch."""
    layers = [
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": "auto"},
    ]
    result: dict[str, Any] = {
        "run": {"dir": str(folder), "name": name},
        "data": {"batch_size": 72, "augment": {"shift": 0}},
        "module": {
            "network": {"layers": layers},
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
            "lr_scheduler": None,
        },
        "trainer": {"max_epochs": 3, "progress": False, "device": "cpu", "threads": 1},
    }
    for group, values in more.items():
        result[group] = {**result[group], **values} if isinstance(values, dict) else values
    return result


def interrupted_run(folder: Path, step: int = 24, name: str = "run", **more: Any) -> Path:
    """A run that was interrupted after `step`."""
    result = assemble(config(folder, name, **more), callbacks=[StopAt(step)]).fit()
    assert result.interrupted
    assert result.run is not None
    return result.run


def resume_to_end(run: Path, **more: Any) -> FitResult:
    result = resume(run, **more).fit()
    assert not result.interrupted
    return result


def weights(run: Path) -> dict[str, Any]:
    model: dict[str, Any] = read_checkpoint(run / "checkpoints" / "last.ckpt")["model"]
    return model


def equal_weights(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.rows("X01")
def test_a_run_with_a_damaged_checkpoint_resumes_from_the_previous_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = interrupted_run(tmp_path, 40)
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-300])
    resume_to_end(run)
    errors = capsys.readouterr().err
    assert "last.ckpt' is not a checkpoint or is damaged" in errors
    assert "Resuming from the previous one, 'last-1.ckpt'" in errors
    uninterrupted = assemble(config(tmp_path, "uninterrupted")).fit().run
    assert uninterrupted is not None
    assert equal_weights(run, uninterrupted)


@pytest.mark.rows("X01")
def test_a_run_killed_before_its_first_checkpoint_starts_from_step_0(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(
        ArtifactError, match=r"a training without a checkpoint to resume from: log\.jsonl\. Restore 'last\.ckpt'"
    ):
        resume(run)
    (run / "log.jsonl").unlink()
    resume_to_end(run)
    uninterrupted = assemble(config(tmp_path, "uninterrupted")).fit().run
    assert uninterrupted is not None
    assert equal_weights(run, uninterrupted)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    one, other = interrupted_run(tmp_path, name="one"), interrupted_run(tmp_path, name="other")
    shutil.copy(other / "checkpoints" / "last.ckpt", one / "checkpoints" / "last.ckpt")
    with pytest.raises(ArtifactError, match=r"last\.ckpt' belongs to another run, 'other'"):
        resume(one)


def test_best_weights_that_are_not_those_of_the_best_epoch_are_refused(tmp_path: Path) -> None:
    """`best.ckpt` of another run, of another epoch, or damaged."""
    one, other = interrupted_run(tmp_path, 40, "one"), interrupted_run(tmp_path, 40, "other", seed=1)
    best, last = one / "checkpoints" / "best.ckpt", one / "checkpoints" / "last.ckpt"
    content = best.read_bytes()

    def assert_refused(message: str) -> None:
        with pytest.raises(ArtifactError, match=message):
            resume(one).finish()
        assert not (one / "exported").exists()

    shutil.copy(other / "checkpoints" / "best.ckpt", best)
    assert_refused("belongs to another run, 'other'")
    shutil.copy(last, best)
    assert_refused("is not the checkpoint of this run's best epoch")
    best.write_bytes(content[:500])
    assert_refused(r"best\.ckpt' is not a checkpoint.*Remove it to export the last weights instead")
    best.write_bytes(content)
    assert resume_to_end(one).metrics["test"]["accuracy"] > 0.5


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path, sightline: Command) -> None:
    run = interrupted_run(tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    first = resume(run)
    before[run / "config.yaml"] = (run / "config.yaml").read_bytes()
    done = sightline("resume", run, "trainer.max_epochs=9")
    assert done.returncode == 2
    assert done.stderr == f"sightline: '{run}' is being trained by another process.\n"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    del first
    resume_to_end(run)


@pytest.mark.slow
@pytest.mark.rows("X01")
def test_a_lock_is_released_when_its_process_is_killed(tmp_path: Path, here: Command) -> None:
    waiting.copy_to(tmp_path)
    arguments = ("train", *waiting.NETWORK, "run.name=killed", "trainer.max_epochs=4")
    with started("-m", "sightline", *arguments, cwd=tmp_path) as process:
        until(process, "waiting")
        assert here("resume", "runs/killed").returncode == 2
        process.kill()
        assert ended(process)[0] == -signal.SIGKILL
    (tmp_path / "go").touch()
    done = here("resume", "runs/killed")
    assert done.returncode == 0, done.stderr


CLOCK = ("seconds", "images_per_second")


def log_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "images_per_second" not in tag]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


@pytest.mark.rows("X01")
@pytest.mark.parametrize("step", [24, 22, 36, 18])
def test_log_and_curves_have_each_point_once(step: int, tmp_path: Path) -> None:
    """Interrupted at a log point, between two and at the end of an epoch, and resumed twice from one checkpoint."""
    log_often = {"trainer": {**config(tmp_path)["trainer"], "log_every": 4}}
    run = interrupted_run(tmp_path, step, **log_often)
    checkpoint = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert resume(run, callbacks=[StopAt(step + 11)]).fit().interrupted
    (run / "checkpoints" / "last.ckpt").write_bytes(checkpoint)  # as after a kill without a checkpoint
    resume_to_end(run)
    uninterrupted = assemble(config(tmp_path, "uninterrupted", **log_often)).fit().run
    assert uninterrupted is not None
    assert curves(run) == curves(uninterrupted)
    logs = [
        [{k: v for k, v in row.items() if k not in CLOCK} for row in log_rows(path)] for path in (run, uninterrupted)
    ]
    assert logs[0] == logs[1]


# --- drift


def test_changed_settings_are_refused_by_name_with_a_way_to_continue(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    changes = {"seed": 4, "module": {"optimizer": {"lr": 0.01}}, "trainer": {"log_every": 7}}
    with pytest.raises(ArtifactError) as caught:
        resume(run, changes)
    message = str(caught.value)
    assert "seed was 0 and is now 4; module.optimizer.lr was 0.1 and is now 0.01." in message
    assert "trainer.log_every may change" in message
    assert "--allow-drift" in message
    resume_to_end(run, changes={"trainer": {"log_every": 7, "max_epochs": 4}})


def test_allowed_drift_is_recorded_and_applied(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    assembly = resume(run, {"module": {"optimizer": {"lr": 0.01}}}, allow_drift=True)
    optimizer = assembly.trainer.state.optimizer
    assert optimizer is not None
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert optimizer.state_dict()["state"], "its momentum was lost"
    assembly.fit()
    (entry,) = json.loads((run / "environment.json").read_text(encoding="utf-8"))["drift"]
    assert (entry["step"], entry["changed"]) == (24, {"module.optimizer.lr": [0.1, 0.01]})
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["about"]["environment"]["drift"] == [entry]
    resume(run)  # the allowed changes are now in the run's config


def test_drift_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    again = resume(run, {"module": {"optimizer": {"lr": 0.01}}}, allow_drift=True)
    again.trainer.max_epochs = 0
    again.fit()
    del again
    assert resume(run).trainer.state.step == 24


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"batch_size": 36}}, {"batch": 12}),
        ({"data": {"batch_size": 144}}, {"batch": 3}),
        ({"module": {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001}}}, {"fresh": True}),
        ({"module": {"ema": 0.9}}, {"average": True}),
        ({"trainer": {"precision": "bf16"}}, {}),
    ],
    ids=["smaller batches", "larger batches", "another optimiser", "an average", "precision"],
)
def test_kinds_of_drift(changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    assembly = resume(run, changes, allow_drift=True)
    state = assembly.trainer.state
    assert (state.step, state.epoch, state.batch) == (24, 1, expected.get("batch", 6))
    assert state.optimizer is not None
    assert bool(state.optimizer.state_dict()["state"]) is not bool(expected.get("fresh"))
    assert (state.ema is not None) is bool(expected.get("average"))
    assert not assembly.fit().interrupted


def test_a_longer_one_cycle_needs_allow_drift(tmp_path: Path) -> None:
    schedule = {
        "module": {
            "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": "auto", "total_steps": "auto"}
        }
    }
    run = interrupted_run(tmp_path, **schedule)
    with pytest.raises(ArtifactError, match="cannot be changed to 90 by resuming"):
        resume(run, {"trainer": {"max_epochs": 5}})
    longer = resume(run, {"trainer": {"max_epochs": 5}}, allow_drift=True)
    reference = assemble(config(tmp_path, "reference", **schedule, trainer={"max_epochs": 5}), callbacks=[StopAt(24)])
    reference.fit()
    one, other = (assembly.trainer.state.optimizer.param_groups[0]["lr"] for assembly in (longer, reference))  # type: ignore[union-attr]
    assert one == pytest.approx(other)
    assert longer.fit().steps == 90


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"batch_size": 144}},
        {"data": {"batch_size": 36}},
        {"trainer": {"accumulate_grad_batches": 2}},
        {"data": {"val": 0.5}},
    ],
    ids=["larger batches", "smaller batches", "accumulation", "less data"],
)
def test_a_schedule_by_step_is_moved_to_its_place_in_training(changes: dict[str, Any], tmp_path: Path) -> None:
    """A third of the second of three epochs is the same place on a curve with any number of steps."""
    schedule = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": "auto", "total_steps": "auto"}
    run = interrupted_run(tmp_path, module={**config(tmp_path)["module"], "lr_scheduler": schedule})
    assembly = resume(run, changes, allow_drift=True)
    state = assembly.trainer.state
    place = state.epoch * len(assembly.trainer.train) + state.batch  # type: ignore[arg-type]
    assert state.schedules[0].scheduler.last_epoch == place
    assert not assembly.fit().interrupted


def test_drift_is_recorded_only_when_the_run_continues(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    resume(run, {"module": {"optimizer": {"lr": 0.01}}}, allow_drift=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    resume_to_end(run)


def test_changes_of_a_callback_after_an_epoch_are_in_its_checkpoint(tmp_path: Path) -> None:
    class Counts(Callback):
        def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
            trainer.state.callbacks["epochs"] = trainer.state.epoch
            if trainer.state.epoch == 2:
                trainer.should_stop = True

    result = assemble(config(tmp_path), callbacks=[Counts()]).fit()
    assert result.epochs == 2
    assert result.run is not None
    checkpoint = read_checkpoint(result.run / "checkpoints" / "last.ckpt")
    assert (checkpoint["stopped"], checkpoint["callbacks"]["epochs"]) == (True, 2)
    assert resume_to_end(result.run).epochs == 2


def test_a_resumed_plateau_keeps_its_rate(tmp_path: Path) -> None:
    node = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "patience": 0, "monitor": "val_loss"}
    run = interrupted_run(
        tmp_path, 40, module={**config(tmp_path)["module"], "lr_scheduler": {**node, "threshold": 10.0}}
    )
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")
    rate = saved["optimizer"]["param_groups"][0]["lr"]
    assert rate < 0.1
    assembly = resume(run, {"data": {"batch_size": 36}}, allow_drift=True)
    assert assembly.trainer.state.optimizer.param_groups[0]["lr"] == rate  # type: ignore[union-attr]
    scheduler = assembly.trainer.state.schedules[0].scheduler
    assert scheduler.best == saved["schedules"][0]["best"]


def test_another_network_is_refused_even_with_allow_drift(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    layers = [
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": 7},
        {"_target_": "torch.nn.Linear", "in_features": 7, "out_features": "auto"},
    ]
    with pytest.raises(ArtifactError, match="belongs to another network"):
        resume(run, {"module": {"network": {"layers": layers}}}, allow_drift=True)


@pytest.mark.parametrize("form", ["_target_", "class"])
def test_another_class_replaces_a_node_with_its_arguments(form: str, tmp_path: Path) -> None:
    """As in a new config: no argument of the previous optimiser or schedule reaches the new one."""
    run = interrupted_run(tmp_path)
    schedule = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5}
    node = {form: "torch.optim.RMSprop"}  # has a momentum argument, like the previous SGD
    assembly = resume(run, {"module": {"optimizer": node, "lr_scheduler": schedule}}, allow_drift=True)
    optimizer = assembly.trainer.state.optimizer
    fresh = torch.optim.RMSprop([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer is not None
    assert optimizer.defaults == fresh.defaults
    assert assembly.config.module.optimizer == node
    assert assembly.config.module.lr_scheduler == schedule
    assert not assembly.fit().interrupted


def test_the_same_class_keeps_the_arguments_that_are_not_named(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    changes = {"module": {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01}}}
    assembly = resume(run, changes, allow_drift=True)
    assert assembly.config.module.optimizer == {"_target_": "torch.optim.SGD", "lr": 0.01, "momentum": 0.9}


def test_drift_on_the_command_line(tmp_path: Path, here: Command) -> None:
    run = interrupted_run(tmp_path)
    refused = here("resume", run, "module.optimizer.lr=0.01")
    assert refused.returncode == 2
    assert "module.optimizer.lr was 0.1 and is now 0.01." in refused.stderr
    assert "Traceback" not in refused.stderr
    assert here("resume", run, "module.optimizer.lr=0.01", "--allow-drift").returncode == 0


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_a_damaged_environment_is_an_error(content: str | None, tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    (run / "environment.json").unlink()
    if content is not None:
        (run / "environment.json").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"environment\.json' is damaged"):
        resume(run)


@pytest.mark.parametrize(
    "changes", [{"epoch": "x"}, {"history": 5}, {"model": {"1.weight": 3}}, {"schedules": [5]}, {"optimizer": {"a": 1}}]
)
def test_a_checkpoint_with_wrong_content_is_refused_with_its_name(changes: dict[str, Any], tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    for path in (run / "checkpoints").glob("last*.ckpt"):
        if path != last:
            path.unlink()
    save_checksummed(last, read_checkpoint(last) | changes)
    with pytest.raises(ArtifactError, match=r"last\.ckpt'"):
        resume(run)


# --- a full disk


def test_the_previous_checkpoint_stays_valid_when_the_disk_fills_up(tmp_path: Path) -> None:
    """The check of the free space succeeds, and the write fails."""
    with small_disk(tmp_path / "small", "3m") as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 40})())
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2), torch.nn.Linear(2, 200_000))
        state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
        save_checksummed(place / "last.ckpt", checkpoint_content(state))
        before = (place / "last.ckpt").read_bytes()
        batches = [Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))]
        checkpointer = Checkpointer(place / "last.ckpt", place / "best.ckpt", "train_loss", "min")
        trainer = Trainer(
            SupervisedTask(torch.nn.CrossEntropyLoss()), state, batches, max_epochs=1, callbacks=[checkpointer]
        )
        with pytest.raises(RunFailedError, match=r"step 1 could not be written to .*No space left on device"):
            trainer.fit()
        assert (place / "last.ckpt").read_bytes() == before
        assert [entry.name for entry in place.iterdir()] == ["last.ckpt"]
        assert read_checkpoint(place / "last.ckpt")["step"] == 0


@pytest.mark.slow
@pytest.mark.rows("X01")
def test_a_run_on_a_full_disk_ends_with_a_message_and_resumes_when_there_is_room(tmp_path: Path, here: Command) -> None:
    with small_disk(tmp_path / "small", "12m") as place:
        waiting.copy_to(tmp_path)
        arguments = ("train", *waiting.NETWORK, "trainer.max_epochs=6")
        with started("-m", "sightline", *arguments, f"run.dir={place}", "run.name=full", cwd=tmp_path) as process:
            until(process, "waiting")
            fill(place / "ballast")
            (tmp_path / "go").touch()
            code, output = ended(process)
        assert code == 1, output
        assert "Traceback" not in output
        assert "The disk is full" in output or "No space left on device" in output
        checkpoint = read_checkpoint(place / "full" / "checkpoints" / "last.ckpt")
        assert checkpoint["step"] > 0
        assert f"step {checkpoint['step']}" in output
        again = here("resume", place / "full")
        assert again.returncode == 1
        assert "Traceback" not in again.stderr
        assert "No space left" in again.stderr or "The disk is full" in again.stderr
        (place / "ballast").unlink()
        done = here("resume", place / "full")
        assert done.returncode == 0, done.stderr
        uninterrupted = here(*arguments, "run.name=uninterrupted")
        assert uninterrupted.returncode == 0
        table = Path("predictions") / "test.csv"
        assert (place / "full" / table).read_bytes() == (tmp_path / "runs" / "uninterrupted" / table).read_bytes()


@pytest.mark.rows("X01")
def test_resuming_late_in_an_epoch_prepares_no_earlier_batch(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path, 1000, data={"batch_size": 1}, trainer={"max_epochs": 1})
    assembly = resume(run)
    prepared: list[int] = []
    prepare = assembly.trainer.train._prepare  # type: ignore[attr-defined]
    assembly.trainer.train._prepare = lambda chunk, each: (  # type: ignore[attr-defined]
        prepared.append(len(np.asarray(chunk.rows))),
        prepare(chunk, each),
    )[1]
    result = assembly.fit()
    assert sum(prepared) == result.steps - 1000
