"""Features that a config key enables: complete runs on the embedded digits, interrupted, resumed and refused."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sightline
from helpers.stop_at import StopAt
from sightline.commands.hydra_config import PRESETS_DIR, compose_config
from sightline.compose.checks import check_targets
from sightline.config.schema import TrainConfig
from sightline.config.shorthand import network_node
from sightline.config.typed import merge
from sightline.core.errors import ArtifactError, ConfigError
from sightline.core.locate import resolve
from sightline.core.yamlfile import read_yaml
from sightline.engine.checkpoint.content import read_checkpoint
from sightline.engine.ema import ModelEMA
from sightline.engine.tasks import SupervisedTask
from sightline.models.networks import SmallCNN

CNN = {"_target_": "sightline.models.networks.SmallCNN", "in_channels": "auto", "num_classes": "auto"}
EVERYTHING: dict[str, Any] = {
    "module": {
        "ema": 0.9,
        "mixup": 0.4,
        "cutmix": 1.0,
        "mix_probability": 0.8,
        "loss": {"label_smoothing": 0.1},
        "freeze_epochs": 1,
        "class_weights": "auto",
    },
    "trainer": {
        "eval_every": 2,
        "precision": "bf16",
        "channels_last": True,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
        "early_stopping": {"patience": 5},
    },
}


def config(folder: Path, name: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Two epochs of a small network on the digits."""
    small = {
        "run": {"dir": str(folder), "name": name},
        "data": {"batch_size": 128, "val": 0.1, "test": 0.5},
        "module": {"network": {"width": 8}},
        "trainer": {"max_epochs": 2, "device": "cpu", "progress": False, "threads": 1},
    }
    return merge(small, changes or {})


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every feature, with initial weights, because the frozen layers must not be random."""
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(SmallCNN(width=8).state_dict(), file)
    return merge(EVERYTHING, {"module": {"weights": str(file)}})


@pytest.fixture(scope="module")
def uninterrupted(everything: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with every feature at once."""
    folder = tmp_path_factory.mktemp("recipes")
    result = sightline.fit(config(folder, "uninterrupted", everything))
    assert result.run is not None
    return result.run


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """Every value of a checkpoint by its path."""
    if isinstance(state, dict):
        return {name: item for key, value in state.items() for name, item in flat(value, f"{path}.{key}").items()}
    if isinstance(state, list):
        return {name: item for i, value in enumerate(state) for name, item in flat(value, f"{path}[{i}]").items()}
    return {path: state}


@pytest.mark.parametrize("step", [2, 3, 5])
def test_with_every_feature_resumed_equals_uninterrupted(
    everything: dict[str, Any], uninterrupted: Path, step: int, tmp_path: Path
) -> None:
    interrupted = sightline.fit(config(tmp_path, "interrupted", everything), callbacks=[StopAt(step)])
    assert interrupted.interrupted
    assert interrupted.run is not None
    assert not sightline.resume(interrupted.run).fit().interrupted
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (flat(read_checkpoint(run / "checkpoints" / name)) for run in (uninterrupted, interrupted.run))
        one, other = (
            {key: value for key, value in values.items() if ".config.run" not in key and ".about." not in key}
            for values in (one, other)
        )
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert same, f"{name}: {key}"
    rows = [(run / "predictions" / "test.csv").read_text() for run in (uninterrupted, interrupted.run)]
    assert rows[0] == rows[1]


def test_the_ema_weights_are_exported(uninterrupted: Path) -> None:
    checkpoint = read_checkpoint(uninterrupted / "checkpoints" / "best.ckpt")
    exported = load_file(uninterrupted / "exported" / "model.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, checkpoint["ema"][name]), name
    assert any(not torch.equal(value, checkpoint["model"][name]) for name, value in exported.items())
    assert sightline.load(uninterrupted).classes == tuple("0123456789")


def test_keys_that_change_a_step_cannot_change_on_resume(everything: dict[str, Any], tmp_path: Path) -> None:
    interrupted = sightline.fit(config(tmp_path, "interrupted", everything), callbacks=[StopAt(2)])
    assert interrupted.run is not None
    for changes in ({"precision": "fp32"}, {"accumulate_grad_batches": 1}, {"gradient_clip_val": None}):
        with pytest.raises(ArtifactError, match=f"trainer.{next(iter(changes))}"):
            sightline.resume(interrupted.run, {"trainer": changes})
    resumed = sightline.resume(interrupted.run, {"trainer": {"channels_last": False}})
    assert resumed.config.trainer.channels_last is False


def test_a_checkpoint_without_newer_config_keys_is_resumed(tmp_path: Path) -> None:
    interrupted = sightline.fit(config(tmp_path, "old"), callbacks=[StopAt(2)])
    assert interrupted.run is not None
    file = interrupted.run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    for key in ("ema", "mixup", "layer_decay", "class_weights"):
        del checkpoint["config"]["module"][key]
    del checkpoint["config"]["trainer"]["precision"]
    torch.save(checkpoint, file)
    assert sightline.resume(interrupted.run).fit().epochs == 2


def test_early_stopping_ends_the_run_and_is_remembered(tmp_path: Path) -> None:
    settings = {
        "module": {"optimizer": {"lr": 0.0, "weight_decay": 0.0}, "lr_scheduler": None, "monitor": "val_accuracy"},
        "trainer": {"max_epochs": 9, "early_stopping": {"patience": 2}},
    }
    result = sightline.fit(config(tmp_path, "stopped", settings))
    # only running statistics change: an early epoch is the best, and two epochs without improvement end the run
    best = max(record["val_accuracy"] for record in result.history)
    first_best = next(i for i, record in enumerate(result.history) if record["val_accuracy"] == best)
    assert result.epochs == first_best + 3 < 9
    assert result.run is not None
    checkpoint = read_checkpoint(result.run / "checkpoints" / "last.ckpt")
    assert checkpoint["stopped"] is True
    assert checkpoint["callbacks"]["early_stopping/val_accuracy"]["waited"] == 2
    again = sightline.resume(result.run).fit()
    assert again.epochs == result.epochs
    patient = {"early_stopping": {"patience": 3}}
    longer = sightline.resume(result.run, {"trainer": patient}).fit()
    assert longer.epochs == result.epochs + 1  # the epochs already waited count
    assert sightline.resume(result.run, {"trainer": {"early_stopping": {"patience": None}, "max_epochs": 9}}).fit()
    assert read_checkpoint(result.run / "checkpoints" / "last.ckpt")["epoch"] == 9


def test_a_run_that_stopped_early_resumes_with_more_epochs(tmp_path: Path) -> None:
    settings = {
        "module": {"optimizer": {"lr": 0.0, "weight_decay": 0.0}, "lr_scheduler": None, "monitor": "val_accuracy"},
        "trainer": {"max_epochs": 9, "early_stopping": {"patience": 1}},
    }
    result = sightline.fit(config(tmp_path, "stopped", settings))
    assert result.run is not None
    assert sightline.resume(result.run, {"trainer": {"max_epochs": 10}}).fit().epochs == result.epochs + 1


def test_patience_counts_across_a_resume(tmp_path: Path) -> None:
    settings = {
        "module": {"optimizer": {"lr": 0.0, "weight_decay": 0.0}, "lr_scheduler": None, "monitor": "val_accuracy"},
        "trainer": {"max_epochs": 9, "early_stopping": {"patience": 2}},
    }
    uninterrupted = sightline.fit(config(tmp_path, "uninterrupted", settings))
    interrupted = sightline.fit(config(tmp_path, "interrupted", settings), callbacks=[StopAt(uninterrupted.steps - 1)])
    assert interrupted.interrupted
    assert interrupted.run is not None
    assert sightline.resume(interrupted.run).fit().epochs == uninterrupted.epochs


def test_an_improvement_must_exceed_min_delta() -> None:
    from types import SimpleNamespace

    from sightline.engine.callbacks import EarlyStopping

    trainer: Any = SimpleNamespace(
        should_stop=False, state=SimpleNamespace(callbacks={}, epoch=0, best=None), max_epochs=9
    )
    messages: list[str] = []
    stopping = EarlyStopping("val_loss", "min", patience=2, min_delta=0.1, report=messages.append)
    for value, stop in [(1.0, False), (0.95, False), (0.85, False), (float("nan"), False), (0.8, True)]:
        stopping.on_eval_end(trainer, {"val_loss": value})
        assert trainer.should_stop is stop
    assert messages == ["stopping after epoch 1: val_loss has not improved for 2 evaluations"]
    with pytest.raises(ConfigError, match=r"did not measure 'val_loss'.*Did you mean 'val_los'\? Measured: val_los\."):
        stopping.on_eval_end(trainer, {"epoch": 1, "val_los": 1.0})


def test_two_early_stopping_callbacks_do_not_share_a_count() -> None:
    from types import SimpleNamespace

    from sightline.engine.callbacks import EarlyStopping

    trainer: Any = SimpleNamespace(should_stop=False, state=SimpleNamespace(callbacks={}, epoch=0))
    both = EarlyStopping("val_loss", "min", patience=3), EarlyStopping("val_accuracy", "max", patience=3)
    for _ in range(3):
        for stopping in both:
            stopping.on_eval_end(trainer, {"val_loss": 1.0, "val_accuracy": 0.5})
    assert not trainer.should_stop  # each has waited for two evaluations
    assert sorted(trainer.state.callbacks) == ["early_stopping/val_accuracy", "early_stopping/val_loss"]


def test_fp16_trains_and_its_scale_is_in_the_checkpoint(tmp_path: Path) -> None:
    settings = {"trainer": {"precision": "fp16", "max_epochs": 1}}
    interrupted = sightline.fit(config(tmp_path, "half", settings), callbacks=[StopAt(3)])
    assert interrupted.run is not None
    assert read_checkpoint(interrupted.run / "checkpoints" / "last.ckpt")["scaler"]["scale"] > 0
    result = sightline.resume(interrupted.run).fit()
    assert result.history[-1]["train_loss"] < 2.4


def test_class_weights_from_the_counts(tmp_path: Path) -> None:
    assembly = sightline.assemble(config(tmp_path, "weights", {"module": {"class_weights": "auto"}}))
    counts = assembly.data["train"].counts
    weights = assembly.config.module.class_weights
    assert isinstance(weights, list)
    total = sum(counts.values())
    assert weights == [total / (10 * count) for count in counts.values()]
    assert assembly.loss.weight.tolist() == pytest.approx(weights)
    assert read_yaml(assembly.run.config)["module"]["class_weights"] == weights  # a resumed run uses these
    # the total weight of each class is equal
    assert [weight * count for weight, count in zip(weights, counts.values(), strict=True)] == pytest.approx(
        [total / 10] * 10
    )


FOCAL = "sightline.models.losses.FocalLoss"
PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
WRONG = [
    ({"module": {"class_weights": [1.0, 2.0]}}, "module.class_weights: found 2 numbers for 10 classes"),
    ({"module": {"class_weights": [1.0, -2.0]}}, "module.class_weights: expected numbers >= 0"),
    (
        {"module": {"class_weights": "auto", "loss": {"_target_": FOCAL, "weight": [1.0] * 10}}},
        "the loss FocalLoss already has a weight",
    ),
    (
        {"module": {"class_weights": "auto", "loss": {"_target_": "torch.nn.CosineSimilarity"}}},
        "the loss CosineSimilarity cannot be weighted",
    ),
    (
        {"module": {"class_weights": "auto", "loss": {"_target_": FOCAL, "_partial_": True}}},
        "the loss partial cannot be weighted",
    ),
    ({"module": {"class_weights": [0.0] * 10}}, "module.class_weights: expected a number > 0 for at least one class"),
    (
        {"module": {"class_weights": "auto", "loss": {"_target_": "torch.nn.NLLLoss"}}},
        "NLLLoss takes log-probabilities",
    ),
    (
        {"module": {"lr_scheduler": {"class": PLATEAU, "kwargs": {"monitor": "val_los"}}}},
        "module.lr_scheduler.monitor: there is no metric 'val_los'. Did you mean 'val_loss'",
    ),
    (
        {"module": {"lr_scheduler": [{"_target_": PLATEAU, "monitor": "val_los"}]}},
        r"module.lr_scheduler\[0\].monitor: there is no metric 'val_los'",
    ),
    ({"module": {"class_weights": "auto"}, "data": {"sampler": "balanced"}}, "rare classes would count twice"),
    ({"module": {"ema": 1.0}}, r"module.ema: expected a number in \(0, 1\)"),
    ({"module": {"mixup": -1.0}}, "module.mixup: expected a number >= 0"),
    ({"module": {"mixup": float("inf")}}, "module.mixup: expected a finite number"),
    ({"module": {"mix_probability": 2.0}}, "module.mix_probability: expected a probability"),
    ({"module": {"layer_decay": 0.0}}, r"module.layer_decay: expected a number in \(0, 1\]"),
    ({"module": {"freeze_epochs": 2}}, "module.freeze_epochs: only the head would be trained in all 2 epochs"),
    ({"module": {"param_groups": [{"lr": 0.1}]}}, r"module.param_groups\[0\]: expected 'match'"),
    ({"module": {"pretrained": True, "weights": "x.pt"}}, "module.weights: a network starts from one set"),
    ({"trainer": {"gradient_clip_val": 0.0}}, "trainer.gradient_clip_val: expected a number > 0"),
    ({"trainer": {"accumulate_grad_batches": 0}}, "trainer.accumulate_grad_batches: expected an integer >= 1"),
    ({"trainer": {"precision": "bf16-mixed"}}, "trainer.precision: expected one of: 'fp32', 'bf16', 'fp16'"),
    ({"trainer": {"threads": 0}}, "trainer.threads: expected an integer >= 1"),
    (
        {"trainer": {"early_stopping": {"patience": 2, "monitor": "val_acuracy"}}},
        "trainer.early_stopping.monitor: there is no metric 'val_acuracy'. Did you mean 'val_accuracy'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_invalid_values_are_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        sightline.assemble(config(tmp_path / "runs", "wrong", changes))
    assert not (tmp_path / "runs").exists()


class CustomTask(SupervisedTask):
    """A task with a custom step."""


@pytest.mark.parametrize(
    ("part", "changes", "key"),
    [
        ("task", {"trainer": {"precision": "bf16"}}, "trainer.precision"),
        ("task", {"trainer": {"accumulate_grad_batches": 2}}, "trainer.accumulate_grad_batches"),
        ("task", {"trainer": {"gradient_clip_val": 1.0}}, "trainer.gradient_clip_val"),
        ("task", {"trainer": {"compile": "auto"}}, "trainer.compile"),
        ("task", {"module": {"ema": 0.9}}, "module.ema"),
        ("task", {"module": {"mixup": 0.2}}, "module.mixup"),
        ("task", {"module": {"cutmix": 1.0}}, "module.cutmix"),
        ("task", {"module": {"freeze": ["features.*"]}}, "module.freeze"),
        ("task", {"module": {"mix_probability": 0.5}}, "module.mix_probability"),
        ("task", {"module": {"ema_warmup": False}}, "module.ema_warmup"),
        ("loss", {"module": {"class_weights": "auto"}}, "module.class_weights"),
        ("loss", {"module": {"loss": {"label_smoothing": 0.1}}}, "module.loss"),
        ("optimizer", {"module": {"optimizer": {"lr": 0.1}}}, "module.optimizer"),
        ("model", {}, "module.network"),
        ("optimizer", {"module": {"layer_decay": 0.5}}, "module.layer_decay"),
        ("optimizer", {"module": {"decay_1d": False}}, "module.decay_1d"),
        ("model", {"module": {"pretrained": True}}, "module.pretrained"),
    ],
)
def test_keys_that_a_part_passed_in_would_ignore_are_refused(
    part: str, changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    parts: dict[str, Any] = {
        "task": CustomTask(nn.CrossEntropyLoss()),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "model": model,
    }
    with pytest.raises(ConfigError, match=f"{key}: the {part} was passed in from Python"):
        sightline.assemble(config(tmp_path, "custom", changes), **{part: parts[part]})


def test_threads_are_not_timed_with_a_custom_task(tmp_path: Path) -> None:
    task = CustomTask(nn.CrossEntropyLoss())
    with pytest.raises(ConfigError, match=r"trainer.threads: auto cannot time a task that was passed in from Python"):
        sightline.assemble(config(tmp_path, "custom", {"trainer": {"threads": "auto"}}), task=task)


def test_a_task_without_its_steps_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for make in (sightline.assemble, sightline.lr_find):
        with pytest.raises(TypeError, match=r"^The task object lacks setup, begin_epoch, train_step"):
            make(config(tmp_path, "custom", {}), task=object())
    assert not (tmp_path / "custom").exists()


def test_a_task_passed_in_uses_its_ema_and_its_scaler(tmp_path: Path) -> None:
    task = SupervisedTask(nn.CrossEntropyLoss(), average=ModelEMA(0.9), precision="fp16")
    assembly = sightline.assemble(config(tmp_path, "custom", {"trainer": {"max_epochs": 1}}), task=task)
    state = assembly.trainer.state
    assert state.scaler is not None
    assert state.ema is not None
    assert state.eval_model is state.ema
    first = [parameter.clone() for parameter in state.ema.parameters()]
    assembly.fit()
    assert any(not torch.equal(a, b) for a, b in zip(first, state.ema.parameters(), strict=True))


def test_ema_of_a_network_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    class Locked(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            if not memo:  # with a memo, the caller copies it only to infer shapes
                raise TypeError("cannot pickle '_thread.lock' object")
            return nn.Sequential(*copy.deepcopy(list(self), memo))

    settings = config(tmp_path, "locked") | {"module": {"ema": 0.9}}
    with pytest.raises(ConfigError, match=r"module.ema: the network cannot be copied: TypeError: cannot pickle"):
        sightline.assemble(settings, model=Locked(nn.Flatten(), nn.Linear(64, 10)))


def test_the_loss_with_class_weights_does_not_depend_on_how_samples_are_batched(tmp_path: Path) -> None:
    results = []
    for size in (7, 64):
        changes = {
            "data": {"eval_batch_size": size},
            "module": {"class_weights": [0.0, *(float(i) for i in range(1, 10))]},
            "trainer": {"max_epochs": 1},
        }
        results.append(sightline.fit(config(tmp_path, str(size), changes)))
    assert results[0].history[0]["val_loss"] == pytest.approx(results[1].history[0]["val_loss"], rel=1e-5)
    assert results[0].metrics["test"]["loss"] == pytest.approx(results[1].metrics["test"]["loss"], rel=1e-5)


def test_the_short_names_of_a_network() -> None:
    timm = {"_target_": "timm.create_model", "model_name": "resnet18", "num_classes": "auto", "in_chans": "auto"}
    assert network_node("timm/resnet18") == timm
    assert network_node("torchvision/resnet18") == {"_target_": "torchvision.models.resnet18", "num_classes": "auto"}
    assert network_node("mine.networks.Net") == {"_target_": "mine.networks.Net"}
    parsed = TrainConfig.from_dict(
        {"model": "timm/resnet18", "weights": "x.pt", "module": {"network": {"drop_rate": 0.1}}}
    )
    assert parsed.module.network == {**timm, "drop_rate": 0.1}
    assert parsed.module.weights == "x.pt"
    assert (parsed.model, parsed.weights, parsed.pretrained) == (None, None, None)
    assert TrainConfig.from_dict(parsed.to_dict()) == parsed
    for other in ({"_target_": "x.Y", "width": 3}, {"class": "x.Y"}, {"layers": []}):
        with pytest.raises(ConfigError, match=r"model: 'timm/resnet18' names a network, but module.network describes"):
            TrainConfig.from_dict({"model": "timm/resnet18", "module": {"network": other}})


SMALL = "sightline.models.networks.SmallCNN"
RESNET, LITE = network_node("timm/resnet18"), network_node("timm/tf_efficientnet_lite0")


@pytest.mark.parametrize(
    ("overrides", "network"),
    [
        (["experiment=finetune"], LITE),
        (["experiment=finetune", f"module.network._target_={SMALL}"], {"_target_": SMALL}),
        ([f"module.network={{class:{SMALL}}}", "experiment=folder"], {"class": SMALL}),
        (["experiment=finetune", "module.network.drop_rate=0.3"], {**LITE, "drop_rate": 0.3}),
        (["experiment=cifar10", "model=timm/resnet18", "module.network.drop_rate=0.3"], {**RESNET, "drop_rate": 0.3}),
        (["experiment=fashionmnist", f"model={SMALL}"], {"_target_": SMALL}),
        (["experiment=fashionmnist", "module.network.width=8"], {**CNN, "width": 8}),
        (["experiment=finetune", "model=null"], CNN),
    ],
)
def test_a_network_in_the_overrides_replaces_that_in_a_preset(overrides: list[str], network: dict[str, Any]) -> None:
    assert compose_config(overrides).module.network == network


def test_two_networks_in_the_overrides_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model: 'timm/resnet18' names a network, but module.network describes"):
        compose_config(["model=timm/resnet18", f"module.network._target_={SMALL}"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("resnet18", "Did you mean 'timm/resnet18' or 'torchvision/resnet18'"),
        ("tim/resnet18", "Did you mean 'timm/resnet18'"),
        ("timm/", "Expected timm/NAME"),
        (18, "model: expected a string or null, found the integer 18"),
    ],
)
def test_an_invalid_name_of_a_network(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict({"model": value})


@pytest.mark.rows("D03")
@pytest.mark.parametrize("name", sorted(file.stem for file in (PRESETS_DIR / "experiment").glob("*.yaml")))
@pytest.mark.parametrize("schedule", sorted(file.stem for file in (PRESETS_DIR / "lr_scheduler").glob("*.yaml")))
def test_every_recipe_composes_with_every_schedule(name: str, schedule: str) -> None:
    composed = compose_config([f"experiment={name}", f"lr_scheduler={schedule}", "runtime=auto"])
    check_targets(composed)  # every class it names exists
    node = composed.module.lr_scheduler
    if schedule == "constant":
        assert node is None
    else:
        assert isinstance(node, dict)
        target = resolve(node["_target_"], key="module.lr_scheduler")
        accepted = set(inspect.signature(target).parameters)
        assert set(node) - {"_target_"} <= accepted  # none remains from the recipe's schedule
    assert (composed.trainer.channels_last, composed.trainer.threads, composed.trainer.compile) == ("auto",) * 3
