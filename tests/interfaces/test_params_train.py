"""Runs of the params-dict trainer: what the steps receive, the files in `logdir`, and how a run resumes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from helpers.params_digits import small_digits
from helpers.params_user import collection, loss_func, run, small, test_step_for, train_step
from sightline.core.errors import ArtifactError, ConfigError, DataError, NonFiniteLossError
from sightline.core.files import locked
from sightline.params import FashionMNIST, build_classifier, load_checkpoint, set_seeds, train

METRICS = ("Accuracy", "Precision", "Recall", "F1Score")
NUMBER = r"\d+\.\d{8}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_digits(tmp_path_factory.mktemp("small") / "data")


def weights(model: nn.Module) -> str:
    """A digest of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def curves(logdir: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars that TensorBoard shows: tag -> [(step, value), …]."""
    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def stopping_at(step: int, kind: int = signal.SIGINT) -> Callable[..., tuple[Any, Any]]:
    """A training step that sends the process a signal when it is called for the n-th time."""
    calls = 0

    def stops(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), kind)
        return train_step(*args, **kwargs)

    return stops


# --- a run


@pytest.mark.rows("A20", "A21", "A28", "A29", "A30", "A31", "A32", "A33", "A37", "A40", "A41", "A42", "AB11", "AB14")
def test_a_run_has_the_documented_files_keys_curves_and_lines(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, model = run(small(num_epochs=4), data, tmp_path / "logs")
    assert done is True
    # evaluated and saved after epochs 0 and 2, and after the last
    lines = capsys.readouterr().out.splitlines()
    evaluation = [rf"Evaluation \d done\. Average Loss {NUMBER}", "-{20,}",
                  " ".join(f"{name} {NUMBER}" for name in METRICS), "-{20,}"]  # fmt: skip
    expected = []
    for epoch in range(4):
        expected.append(rf"Epoch {epoch} done\. Average Epoch Loss {NUMBER}")
        expected += evaluation if epoch != 1 else []
    assert len(lines) == len(expected)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, lines, strict=True)), lines
    assert [line.split()[1] for line in lines if line.startswith("Evaluation")] == ["0", "1", "2"]

    assert sorted(file.name for file in (tmp_path / "logs").glob("*.pt")) == [f"model_epoch_{e}.pt" for e in (0, 2, 3)]
    saved = torch.load(tmp_path / "logs" / "model_epoch_3.pt", weights_only=True)
    assert set(saved) == {
        "model_state_dict", "optimizer_state_dict", "ExponentialLRSchedulestate_dict",
        "ReduceLROnPlateauSchedulestate_dict", "format", "epoch", "step",
    }  # fmt: skip
    fresh = build_classifier(small(), outputs="logits")
    load_checkpoint(tmp_path / "logs" / "model_epoch_3.pt", fresh)
    assert weights(fresh) == weights(model)
    assert (saved["epoch"], saved["step"]) == (3, 12)

    scalars = curves(tmp_path / "logs")
    by_step = {f"{name}/train" for name in ("loss", *METRICS)}
    by_evaluation = {f"{name}/test" for name in ("loss", *METRICS)}
    assert set(scalars) == by_step | by_evaluation | {"avg_loss/train"}
    assert all([step for step, _ in scalars[tag]] == list(range(1, 13)) for tag in by_step)
    assert all([step for step, _ in scalars[tag]] == [3, 9, 12] for tag in by_evaluation)
    assert [step for step, _ in scalars["avg_loss/train"]] == [0, 1, 2, 3]
    steps = [value for _, value in scalars["loss/train"]]
    means = [sum(steps[i : i + 3]) / 3 for i in range(0, 12, 3)]
    assert [value for _, value in scalars["avg_loss/train"]] == pytest.approx(means, rel=1e-5)
    assert float(lines[0].split()[-1]) == pytest.approx(means[0], rel=1e-5)


@pytest.mark.rows("A31", "A32", "AB9", "AB10")
def test_the_steps_get_every_image_once_and_test_images_unchanged(data: Path, tmp_path: Path) -> None:
    settings = small(num_epochs=1, flip_images=True, flip_probability=1.0)
    plain = {kind: FashionMNIST(small(), kind, data) for kind in ("train", "test")}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "test": []}
    modes, states = set(), []

    def training(x: Tensor, y: Tensor, model: nn.Module, optim: Any, **kwargs: Any) -> tuple[float, None]:
        seen["train"].append((x.clone(), y.clone()))
        assert model.training
        assert kwargs == {"more": 5}
        return train_step(x, y, model, optim)[0], None

    def testing(x: Tensor, y: Tensor, model: nn.Module, **kwargs: Any) -> tuple[float, None]:
        seen["test"].append((x.clone(), y.clone()))
        modes.add(model.training)
        states.append(weights(model))
        assert kwargs == {"more": 5}
        return loss_func(model(x), y).item(), None

    model = build_classifier(settings, outputs="logits")
    assert train(settings, model, training, testing, data, tmp_path / "logs", more=5)
    assert [len(y) for _, y in seen["test"]] == [16, 16, 8]
    test = torch.cat([x for x, _ in seen["test"]])
    assert torch.equal(test, torch.stack([image for image, _ in plain["test"]]))
    train_x = torch.cat([x for x, _ in seen["train"]])
    flipped = torch.stack([image.flip(1, 2) for image, _ in plain["train"]])
    assert not torch.equal(train_x, flipped)  # in another order
    assert torch.equal(train_x.flatten(1).sort(0)[0], flipped.flatten(1).sort(0)[0])
    assert modes == {False}
    assert set(states) == {weights(model)}


@pytest.mark.rows("A11")
def test_each_epoch_has_a_different_order_unless_the_dict_forbids_it(data: Path, tmp_path: Path) -> None:
    def orders(**changes: Any) -> list[list[int]]:
        labels: list[int] = []

        def recording(x: Tensor, y: Tensor, *rest: Any, **kwargs: Any) -> tuple[Any, Any]:
            labels.extend(y.tolist())
            return train_step(x, y, *rest, **kwargs)

        run(small(num_epochs=2, **changes), data, tmp_path / f"logs-{len(changes)}", step=recording)
        return [labels[:96], labels[96:]]

    first, second = orders()
    assert first != second
    assert sorted(first) == sorted(second)
    listed = FashionMNIST(small(), "train", data).packed.labels.tolist()
    assert orders(shuffle_dataset=False) == [listed, listed]


@pytest.mark.rows("AB8", "AB9")
@pytest.mark.parametrize("frequency", ["epoch", "batch"])
def test_an_evaluation_of_the_same_weights_gives_the_same_numbers(data: Path, tmp_path: Path, frequency: str) -> None:
    settings = small(eval_metric_compute_freq=frequency, eval_freq=1, learning_rate_schedule=None)

    def idle(x: Tensor, y: Tensor, model: nn.Module, optim: Any, **kwargs: Any) -> tuple[float, None]:
        return 1.0, None

    run(settings, data, tmp_path / "logs", step=idle)
    scalars = curves(tmp_path / "logs")
    for tag in ("loss/test", *(f"{name}/test" for name in METRICS)):
        values = [value for _, value in scalars[tag]]
        assert len(values) == 3
        assert len(set(values)) == 1, tag


@pytest.mark.rows("A26")
def test_metrics_are_over_all_samples_or_the_means_of_batches(data: Path, tmp_path: Path) -> None:
    def measured(frequency: str) -> tuple[float, float]:
        outputs = []

        def recording(x: Tensor, y: Tensor, model: nn.Module, **kwargs: Any) -> tuple[Any, Any]:
            outputs.append((model(x).argmax(1), y))
            return test_step_for(settings)(x, y, model, **kwargs)

        settings = small(num_epochs=1, eval_metric_compute_freq=frequency)
        run(settings, data, tmp_path / frequency, test=recording)
        predicted, labels = (torch.cat(part) for part in zip(*outputs, strict=True))
        recalls = [float((predicted[labels == c] == c).float().mean()) for c in labels.unique()]
        return curves(tmp_path / frequency)["Accuracy/test"][0][1], sum(recalls) / len(recalls)

    reported, exact = measured("epoch")
    assert reported == pytest.approx(exact)
    reported, exact = measured("batch")
    assert reported != pytest.approx(exact)


@pytest.mark.rows("A23", "AB12")
@pytest.mark.parametrize("frequency", ["epoch", "batch"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_steps_with_every_evaluation(data: Path, tmp_path: Path, frequency: str, mode: str) -> None:
    plateau = {
        "name": "Plateau",
        "class": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "kwargs": {"mode": mode, "factor": 0.5, "patience": 0, "threshold": 10.0, "threshold_mode": "abs"},
    }
    settings = small(
        num_epochs=5, eval_metric_compute_freq=frequency, learning_rate_schedule=[plateau], learning_rate=0.01
    )
    run(settings, data, tmp_path / "logs")
    content = torch.load(tmp_path / "logs" / "model_epoch_4.pt", weights_only=True)
    assert content["Plateaustate_dict"]["last_epoch"] == 3
    # nothing gets better by ten: halved at the second evaluation and at the third
    assert content["optimizer_state_dict"]["param_groups"][0]["lr"] == pytest.approx(0.01 / 4)


@pytest.mark.rows("A23")
def test_a_plateau_that_monitors_an_unknown_metric_is_refused(data: Path, tmp_path: Path) -> None:
    plateau = {"class": torch.optim.lr_scheduler.ReduceLROnPlateau, "monitor": "test_Recal", "kwargs": {"mode": "max"}}
    with pytest.raises(ConfigError, match=r"watches 'test_Recal'.* Did you mean 'test_Recall'\?"):
        run(small(learning_rate_schedule=[plateau]), data, tmp_path / "logs")


@pytest.mark.rows("AB7")
def test_probabilities_in_cross_entropy_warn_once(data: Path, tmp_path: Path) -> None:
    settings = small(num_epochs=2)
    model = build_classifier(settings)
    with pytest.warns(UserWarning, match=r"cannot fall below 1\.4612 for 10 classes.*outputs='logits'") as warned:
        train(settings, model, train_step, test_step_for(settings), data, tmp_path / "logs")
    assert len(warned) == 1


@pytest.mark.rows("A15", "A16")
def test_colour_images_train(tmp_path: Path) -> None:
    """Trains on red and blue images of the same brightness, which gray levels cannot separate."""
    from helpers.images import noise, write_image, write_table

    for split, count in (("train", 64), ("test", 32)):
        for i in range(count):
            pixels = noise(8, 8, 3, seed=i) // 4
            pixels[:, :, 0 if i % 2 else 2] += 128
            write_image(tmp_path / "data" / split / f"{i}.png", pixels)
        write_table(tmp_path / "data" / split / "info.csv", "files,type", [f"{i}.png,{i % 2}" for i in range(count)])
    first = {"class": nn.Conv2d, "kwargs": {"in_channels": "auto", "out_channels": 6, "kernel_size": 3}}
    settings = small(
        net_arch=[first, *small()["net_arch"][1:]], is_image_color=True, n_classes=2, num_epochs=8, batch_size=16,
        normalise_images=True, normalise_mean=[0.5] * 3, normalise_std=[0.25] * 3, flip_images=True,
        additional_transforms=[nn.Identity()],
    )  # fmt: skip
    done, _ = run(settings, tmp_path / "data", tmp_path / "logs", metrics=False, test=accuracy_step)
    assert done
    assert curves(tmp_path / "logs")["accuracy/test"][-1][1] == 1.0


def accuracy_step(x: Tensor, y: Tensor, model: nn.Module) -> tuple[float, dict[str, float]]:
    """A test step with a custom metric."""
    output = model(x)
    return loss_func(output, y).item(), {"accuracy": (output.argmax(1) == y).float().mean().item()}


# --- mistakes


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"train_step returned None; expected \(loss, metrics\)"),
        (1.0, r"train_step returned 1.0; expected \(loss, metrics\)"),
        ((1.0, None, 2), r"train_step returned a tuple of 3; expected"),
        (("low", None), r"train_step returned a tuple of 2; expected"),
        ((1.0, [0.5]), r"train_step returned a tuple of 2; expected"),
    ],
)
def test_a_step_that_returns_something_else_is_an_error(
    data: Path, tmp_path: Path, returned: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(small(), data, tmp_path / "logs", step=lambda *args, **kwargs: returned)


def test_a_loss_that_is_not_a_number_ends_the_run_with_its_step(data: Path, tmp_path: Path) -> None:
    calls = iter(range(100))

    def failing(*args: Any, **kwargs: Any) -> tuple[float, None]:
        return (float("nan") if next(calls) == 4 else 1.0), None

    with pytest.raises(NonFiniteLossError, match=r"became nan at step 5 \(epoch 1, batch 1\)") as error:
        run(small(learning_rate_schedule=None), data, tmp_path / "logs", step=failing)
    assert "The last good checkpoint, of step 3" in error.value.__notes__[0]


def test_an_error_in_a_step_is_raised_unchanged_with_its_position(data: Path, tmp_path: Path) -> None:
    def failing(*args: Any, **kwargs: Any) -> tuple[float, None]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as error:
        run(small(), data, tmp_path / "logs", step=failing)
    assert "epoch 0, batch 0 (step 1)" in error.value.__notes__[0]


def test_a_step_that_is_not_callable_and_an_unusable_logdir_are_errors(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train_step: expected a function, found int"):
        run(small(), data, tmp_path / "logs", step=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="logdir: cannot create the directory"):
        run(small(), data, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"params\['device'\]: 'gpu' is not a torch device"):
        run(small(device="gpu"), data, tmp_path / "logs")


# --- resuming


@pytest.mark.rows("AB14")
def test_an_interrupted_run_resumes_bitwise_equal(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With flips, a random additional transform, dropout, momentum."""
    from torchvision.transforms import v2

    settings = small(
        num_epochs=3, flip_images=True, additional_transforms=[v2.RandomRotation(20)], optim_kwargs={"momentum": 0.9},
        learning_rate=0.01, net_arch=[*small()["net_arch"], {"class": nn.Dropout, "kwargs": {"p": 0.3}}],
    )  # fmt: skip
    done, uninterrupted = run(settings, data, tmp_path / "uninterrupted")
    assert done
    done, _ = run(settings, data, tmp_path / "logs", step=stopping_at(5))
    assert done is False
    assert "Stopped after step 5; the same call to train resumes from there." in capsys.readouterr().out
    done, model = run(settings, data, tmp_path / "logs")
    assert done is True
    assert "Resuming" in capsys.readouterr().out
    assert weights(model) == weights(uninterrupted)
    assert curves(tmp_path / "logs") == curves(tmp_path / "uninterrupted")
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")} for line in lines]
        for lines in ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("logs", "uninterrupted"))
    ]
    assert rows[0] == rows[1]


@pytest.mark.rows("A41", "AB14")
def test_points_logged_after_the_last_checkpoint_appear_once(data: Path, tmp_path: Path) -> None:
    def failing(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if next(calls) == 7:
            raise RuntimeError
        return train_step(*args, **kwargs)

    calls = iter(range(100))
    with pytest.raises(RuntimeError):
        run(small(), data, tmp_path / "logs", step=failing)
    assert curves(tmp_path / "logs")["loss/train"][-1][0] == 7  # the checkpoint is of step 6
    _, model = run(small(), data, tmp_path / "logs")
    _, uninterrupted = run(small(), data, tmp_path / "uninterrupted")
    assert weights(model) == weights(uninterrupted)
    assert curves(tmp_path / "logs") == curves(tmp_path / "uninterrupted")


SCRIPT = """
import sys
from pathlib import Path
from interfaces.test_params_train import stopping_at, weights
from helpers.params_user import run, small, train_step
data, logdir, kill = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
done, model = run(small(), data, logdir, step=stopping_at(kill, 9) if kill else train_step)
print(done, weights(model))
"""


@pytest.mark.rows("AB14")
def test_a_killed_run_resumes_bitwise_equal(data: Path, tmp_path: Path) -> None:
    def process(logdir: Path, kill: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, str(data), str(logdir), str(kill)]
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    killed = process(tmp_path / "logs", kill=8)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = process(tmp_path / "logs", kill=0)
    assert "Resuming" in again.stdout, again.stderr
    _, uninterrupted = run(small(), data, tmp_path / "uninterrupted")
    assert again.stdout.splitlines()[-1] == f"True {weights(uninterrupted)}"


def test_a_finished_run_is_not_changed_and_its_weights_are_loaded(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, trained = run(small(), data, tmp_path / "logs")
    before = {file: file.read_bytes() for file in (tmp_path / "logs").rglob("*") if file.is_file()}
    done, model = run(small(), data, tmp_path / "logs", step=stopping_at(1))  # this step is never called
    assert done is True
    assert weights(model) == weights(trained)
    assert {file: file.read_bytes() for file in (tmp_path / "logs").rglob("*") if file.is_file()} == before
    assert "is already finished (3 epochs)" in capsys.readouterr().out


def test_more_epochs_resume_the_run(data: Path, tmp_path: Path) -> None:
    _, uninterrupted = run(small(num_epochs=5), data, tmp_path / "uninterrupted")
    run(small(num_epochs=2), data, tmp_path / "logs")
    done, model = run(small(num_epochs=5, save_freq=1, mode="script"), data, tmp_path / "logs")
    assert done
    assert weights(model) == weights(uninterrupted)


def test_another_dict_or_other_images_are_refused(data: Path, tmp_path: Path) -> None:
    run(small(), data, tmp_path / "logs")
    with pytest.raises(ArtifactError, match=r"another training: learning_rate was 0\.1 and is now 0\.2\. Restore"):
        run(small(learning_rate=0.2), data, tmp_path / "logs")
    shutil.copytree(data, tmp_path / "data")
    table = tmp_path / "data" / "train" / "info.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], "digit_0.png,9", *lines[2:]]))
    with pytest.raises(ArtifactError, match="other images or labels: the content of the train split is not the same"):
        run(small(), tmp_path / "data", tmp_path / "logs")


def test_a_directory_of_another_program_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "model_epoch_995.pt").write_bytes(b"theirs")
    with pytest.raises(
        ArtifactError, match=r"resume from: model_epoch_995\.pt\. Nothing is overwritten: choose another logdir"
    ):
        run(small(), data, tmp_path / "logs")
    assert [file.name for file in (tmp_path / "logs").iterdir()] == ["model_epoch_995.pt"]


def test_a_directory_that_another_process_trains_in_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with locked(tmp_path / "logs"), pytest.raises(ArtifactError, match="is being trained by another process"):
        run(small(), data, tmp_path / "logs")


def test_a_damaged_checkpoint_is_skipped(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, trained = run(small(), data, tmp_path / "logs")
    last = tmp_path / "logs" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    done, model = run(small(), data, tmp_path / "logs")
    assert done
    assert weights(model) == weights(trained)
    assert "Resuming from the previous one, 'last-1.ckpt'" in caplog.text


def test_missing_data_creates_no_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="datadir:"):
        run(small(), tmp_path / "nowhere", tmp_path / "logs")
    assert not any((tmp_path / "logs").iterdir())
    done, _ = run(small(num_epochs=1), data, tmp_path / "logs")
    assert done


@pytest.mark.rows("AB8")
def test_the_training_metrics_are_reset_in_each_epoch(data: Path, tmp_path: Path) -> None:
    settings, metrics, counts = small(), collection(), []

    def counting(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        result = train_step(*args, **kwargs)
        counts.append(metrics["Accuracy"].update_count)
        return result

    set_seeds(0)
    model = build_classifier(settings, outputs="logits")
    train(settings, model, counting, test_step_for(settings), data, tmp_path / "logs", train_torchmetrics=metrics)
    assert counts == [1, 2, 3] * 3
