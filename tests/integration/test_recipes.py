"""What a config switches on by a word: whole runs on the embedded digits, interrupted, resumed, refused."""

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


def config(place: Path, name: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Two epochs of a small network on the digits."""
    small = {
        "run": {"dir": str(place), "name": name},
        "data": {"batch_size": 128, "val": 0.1, "test": 0.5},
        "module": {"network": {"width": 8}},
        "trainer": {"max_epochs": 2, "device": "cpu", "progress": False, "threads": 1},
    }
    return merge(small, changes or {})


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every feature, with weights to start from: what is frozen at first is not to be random."""
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(SmallCNN(width=8).state_dict(), file)
    return merge(EVERYTHING, {"module": {"weights": str(file)}})


@pytest.fixture(scope="module")
def whole(everything: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every feature at once, to its end."""
    place = tmp_path_factory.mktemp("recipes")
    result = sightline.fit(config(place, "whole", everything))
    assert result.run is not None
    return result.run


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint by its place."""
    if isinstance(state, dict):
        return {name: leaf for key, value in state.items() for name, leaf in flat(value, f"{path}.{key}").items()}
    if isinstance(state, list):
        return {name: leaf for i, value in enumerate(state) for name, leaf in flat(value, f"{path}[{i}]").items()}
    return {path: state}


@pytest.mark.parametrize("step", [2, 3, 5])
def test_with_every_feature_resumed_equals_uninterrupted(
    everything: dict[str, Any], whole: Path, step: int, tmp_path: Path
) -> None:
    stopped = sightline.fit(config(tmp_path, "parted", everything), callbacks=[StopAt(step)])
    assert stopped.interrupted
    assert stopped.run is not None
    assert not sightline.resume(stopped.run).fit().interrupted
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (flat(read_checkpoint(run / "checkpoints" / name)) for run in (whole, stopped.run))
        one, other = (
            {key: leaf for key, leaf in kept.items() if ".config.run" not in key and ".about." not in key}
            for kept in (one, other)
        )
        assert one.keys() == other.keys()
        for key, leaf in one.items():
            same = torch.equal(leaf, other[key]) if isinstance(leaf, torch.Tensor) else leaf == other[key]
            assert same, f"{name}: {key}"
    rows = [(run / "predictions" / "test.csv").read_text() for run in (whole, stopped.run)]
    assert rows[0] == rows[1]


def test_the_average_is_what_is_exported(whole: Path) -> None:
    kept = read_checkpoint(whole / "checkpoints" / "best.ckpt")
    exported = load_file(whole / "exported" / "model.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, kept["ema"][name]), name
    assert any(not torch.equal(value, kept["model"][name]) for name, value in exported.items())
    assert sightline.load(whole).classes == tuple("0123456789")


def test_what_makes_another_step_may_not_change_on_the_way(everything: dict[str, Any], tmp_path: Path) -> None:
    stopped = sightline.fit(config(tmp_path, "parted", everything), callbacks=[StopAt(2)])
    assert stopped.run is not None
    for changes in ({"precision": "fp32"}, {"accumulate_grad_batches": 1}, {"gradient_clip_val": None}):
        with pytest.raises(ArtifactError, match=f"trainer.{next(iter(changes))}"):
            sightline.resume(stopped.run, {"trainer": changes})
    assert sightline.resume(stopped.run, {"trainer": {"channels_last": False}}).config.trainer.channels_last is False


def test_a_checkpoint_from_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    stopped = sightline.fit(config(tmp_path, "old"), callbacks=[StopAt(2)])
    assert stopped.run is not None
    file = stopped.run / "checkpoints" / "last.ckpt"
    kept = torch.load(file, weights_only=True)
    for key in ("ema", "mixup", "layer_decay", "class_weights"):
        del kept["config"]["module"][key]
    del kept["config"]["trainer"]["precision"]
    torch.save(kept, file)
    assert sightline.resume(stopped.run).fit().epochs == 2


def test_early_stopping_ends_the_run_and_is_remembered(tmp_path: Path) -> None:
    settings = {
        "module": {"optimizer": {"lr": 0.0, "weight_decay": 0.0}, "lr_scheduler": None, "monitor": "val_accuracy"},
        "trainer": {"max_epochs": 9, "early_stopping": {"patience": 2}},
    }
    result = sightline.fit(config(tmp_path, "stopped", settings))
    # nothing is learnt but running statistics: the first is the best, or an early one; two without gain end it
    best = max(record["val_accuracy"] for record in result.history)
    first_best = next(i for i, record in enumerate(result.history) if record["val_accuracy"] == best)
    assert result.epochs == first_best + 3 < 9
    assert result.run is not None
    kept = read_checkpoint(result.run / "checkpoints" / "last.ckpt")
    assert kept["stopped"] is True
    assert kept["callbacks"]["early_stopping/val_accuracy"]["waited"] == 2
    again = sightline.resume(result.run).fit()
    assert again.epochs == result.epochs
    patient = {"early_stopping": {"patience": 3}}
    longer = sightline.resume(result.run, {"trainer": patient}).fit()
    assert longer.epochs == result.epochs + 1  # what it has waited counts
    assert sightline.resume(result.run, {"trainer": {"early_stopping": {"patience": None}, "max_epochs": 9}}).fit()
    assert read_checkpoint(result.run / "checkpoints" / "last.ckpt")["epoch"] == 9


def test_a_run_that_ended_early_goes_on_when_it_is_given_more_epochs(tmp_path: Path) -> None:
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
    whole = sightline.fit(config(tmp_path, "whole", settings))
    parted = sightline.fit(config(tmp_path, "parted", settings), callbacks=[StopAt(whole.steps - 1)])
    assert parted.interrupted
    assert parted.run is not None
    assert sightline.resume(parted.run).fit().epochs == whole.epochs


def test_an_improvement_must_exceed_min_delta() -> None:
    from types import SimpleNamespace

    from sightline.engine.callbacks import EarlyStopping

    trainer: Any = SimpleNamespace(
        should_stop=False, state=SimpleNamespace(callbacks={}, epoch=0, best=None), max_epochs=9
    )
    told: list[str] = []
    stopping = EarlyStopping("val_loss", "min", patience=2, min_delta=0.1, tell=told.append)
    for value, stop in [(1.0, False), (0.95, False), (0.85, False), (float("nan"), False), (0.8, True)]:
        stopping.on_eval_end(trainer, {"val_loss": value})
        assert trainer.should_stop is stop
    assert told == ["stopping after epoch 1: val_loss has not become better for 2 evaluations"]
    with pytest.raises(ConfigError, match=r"did not measure 'val_loss'.*Did you mean 'val_los'\? There are: val_los\."):
        stopping.on_eval_end(trainer, {"epoch": 1, "val_los": 1.0})


def test_two_that_stop_early_do_not_share_a_count() -> None:
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
    stopped = sightline.fit(config(tmp_path, "half", settings), callbacks=[StopAt(3)])
    assert stopped.run is not None
    assert read_checkpoint(stopped.run / "checkpoints" / "last.ckpt")["scaler"]["scale"] > 0
    result = sightline.resume(stopped.run).fit()
    assert result.history[-1]["train_loss"] < 2.4


def test_class_weights_from_the_counts(tmp_path: Path) -> None:
    made = sightline.assemble(config(tmp_path, "weights", {"module": {"class_weights": "auto"}}))
    counts = made.data["train"].counts
    weights = made.config.module.class_weights
    assert isinstance(weights, list)
    total = sum(counts.values())
    assert weights == [total / (10 * count) for count in counts.values()]
    assert made.loss.weight.tolist() == pytest.approx(weights)
    assert read_yaml(made.run.config)["module"]["class_weights"] == weights  # what a resumed run goes on with
    # each class counts the same in all
    assert [weight * count for weight, count in zip(weights, counts.values(), strict=True)] == pytest.approx(
        [total / 10] * 10
    )


FOCAL = "sightline.models.losses.FocalLoss"
PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
WRONG = [
    ({"module": {"class_weights": [1.0, 2.0]}}, "module.class_weights: 2 numbers for 10 classes"),
    ({"module": {"class_weights": [1.0, -2.0]}}, "module.class_weights: expected numbers of at least 0"),
    (
        {"module": {"class_weights": "auto", "loss": {"_target_": FOCAL, "weight": [1.0] * 10}}},
        "the loss FocalLoss has a weight of its own",
    ),
    (
        {"module": {"class_weights": "auto", "loss": {"_target_": "torch.nn.CosineSimilarity"}}},
        "the loss CosineSimilarity takes no class weights",
    ),
    (
        {"module": {"class_weights": "auto", "loss": {"_target_": FOCAL, "_partial_": True}}},
        "the loss partial takes no class weights",
    ),
    ({"module": {"class_weights": [0.0] * 10}}, "module.class_weights: expected a number above 0 for some class"),
    (
        {"module": {"class_weights": "auto", "loss": {"_target_": "torch.nn.NLLLoss"}}},
        "NLLLoss takes log-probabilities",
    ),
    (
        {"module": {"lr_scheduler": {"class": PLATEAU, "kwargs": {"monitor": "val_los"}}}},
        "module.lr_scheduler.monitor: there will be no metric 'val_los'. Did you mean 'val_loss'",
    ),
    (
        {"module": {"lr_scheduler": [{"_target_": PLATEAU, "monitor": "val_los"}]}},
        r"module.lr_scheduler\[0\].monitor: there will be no metric 'val_los'",
    ),
    ({"module": {"class_weights": "auto"}, "data": {"sampler": "balanced"}}, "rare classes would count twice"),
    ({"module": {"ema": 1.0}}, "module.ema: expected a decay between 0 and 1"),
    ({"module": {"mixup": -1.0}}, "module.mixup: expected a number of at least 0"),
    ({"module": {"mixup": float("inf")}}, "module.mixup: expected a number"),
    ({"module": {"mix_probability": 2.0}}, "module.mix_probability: expected a probability"),
    ({"module": {"layer_decay": 0.0}}, "module.layer_decay: expected a factor above 0"),
    ({"module": {"freeze_epochs": 2}}, "module.freeze_epochs: the head alone would be trained for all 2 epochs"),
    ({"module": {"param_groups": [{"lr": 0.1}]}}, r"module.param_groups\[0\]: expected 'match'"),
    ({"module": {"pretrained": True, "weights": "x.pt"}}, "module.weights: a network starts from one set"),
    ({"trainer": {"gradient_clip_val": 0.0}}, "trainer.gradient_clip_val: expected a number above 0"),
    ({"trainer": {"accumulate_grad_batches": 0}}, "trainer.accumulate_grad_batches: expected a number of at least 1"),
    ({"trainer": {"precision": "bf16-mixed"}}, "trainer.precision: expected 'fp32' or 'bf16' or 'fp16'"),
    ({"trainer": {"threads": 0}}, "trainer.threads: expected a number of at least 1"),
    (
        {"trainer": {"early_stopping": {"patience": 2, "monitor": "val_acuracy"}}},
        "trainer.early_stopping.monitor: there will be no metric 'val_acuracy'. Did you mean 'val_accuracy'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        sightline.assemble(config(tmp_path / "runs", "wrong", changes))
    assert not (tmp_path / "runs").exists()


class OwnStep(SupervisedTask):
    """A step of the user's own."""


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
def test_a_part_of_ones_own_is_never_half_configured(
    part: str, changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    given: dict[str, Any] = {
        "task": OwnStep(nn.CrossEntropyLoss()),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "model": model,
    }
    with pytest.raises(ConfigError, match=f"{key}: the {part} was handed over in Python"):
        sightline.assemble(config(tmp_path, "own", changes), **{part: given[part]})


def test_threads_are_not_timed_with_a_task_of_ones_own(tmp_path: Path) -> None:
    task = OwnStep(nn.CrossEntropyLoss())
    with pytest.raises(ConfigError, match=r"trainer.threads: auto times steps of the config's own task"):
        sightline.assemble(config(tmp_path, "own", {"trainer": {"threads": "auto"}}), task=task)


def test_a_task_without_its_steps_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for make in (sightline.assemble, sightline.lr_find):
        with pytest.raises(TypeError, match=r"^the task object has no setup, begin_epoch, train_step"):
            make(config(tmp_path, "own", {}), task=object())
    assert not (tmp_path / "own").exists()


def test_a_task_of_ones_own_has_its_average_and_its_scaler(tmp_path: Path) -> None:
    task = SupervisedTask(nn.CrossEntropyLoss(), average=ModelEMA(0.9), precision="fp16")
    made = sightline.assemble(config(tmp_path, "own", {"trainer": {"max_epochs": 1}}), task=task)
    state = made.trainer.state
    assert state.scaler is not None
    assert state.ema is not None
    assert state.eval_model is state.ema
    first = [parameter.clone() for parameter in state.ema.parameters()]
    made.fit()
    assert any(not torch.equal(a, b) for a, b in zip(first, state.ema.parameters(), strict=True))


def test_an_average_of_a_network_that_cannot_be_copied(tmp_path: Path) -> None:
    class Locked(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            if not memo:  # its shapes are found out with stand-ins for the weights, which the memo holds
                raise TypeError("cannot pickle '_thread.lock' object")
            return nn.Sequential(*copy.deepcopy(list(self), memo))

    settings = config(tmp_path, "locked") | {"module": {"ema": 0.9}}
    with pytest.raises(ConfigError, match=r"module.ema: this network cannot be copied: TypeError: cannot pickle"):
        sightline.assemble(settings, model=Locked(nn.Flatten(), nn.Linear(64, 10)))


def test_the_loss_with_class_weights_does_not_depend_on_how_samples_are_batched(tmp_path: Path) -> None:
    found = []
    for size in (7, 64):
        changes = {
            "data": {"eval_batch_size": size},
            "module": {"class_weights": [0.0, *(float(i) for i in range(1, 10))]},
            "trainer": {"max_epochs": 1},
        }
        found.append(sightline.fit(config(tmp_path, str(size), changes)))
    assert found[0].history[0]["val_loss"] == pytest.approx(found[1].history[0]["val_loss"], rel=1e-5)
    assert found[0].metrics["test"]["loss"] == pytest.approx(found[1].metrics["test"]["loss"], rel=1e-5)


def test_the_short_words_for_a_network() -> None:
    timm = {"_target_": "timm.create_model", "model_name": "resnet18", "num_classes": "auto", "in_chans": "auto"}
    assert network_node("timm/resnet18") == timm
    assert network_node("torchvision/resnet18") == {"_target_": "torchvision.models.resnet18", "num_classes": "auto"}
    assert network_node("mine.networks.Net") == {"_target_": "mine.networks.Net"}
    made = TrainConfig.from_dict(
        {"model": "timm/resnet18", "weights": "x.pt", "module": {"network": {"drop_rate": 0.1}}}
    )
    assert made.module.network == {**timm, "drop_rate": 0.1}
    assert made.module.weights == "x.pt"
    assert (made.model, made.weights, made.pretrained) == (None, None, None)
    assert TrainConfig.from_dict(made.to_dict()) == made
    for other in ({"_target_": "x.Y", "width": 3}, {"class": "x.Y"}, {"layers": []}):
        with pytest.raises(
            ConfigError, match=r"model: 'timm/resnet18' names the network, and module.network describes"
        ):
            TrainConfig.from_dict({"model": "timm/resnet18", "module": {"network": other}})


SMALL = "sightline.models.networks.SmallCNN"
RESNET, LITE = network_node("timm/resnet18"), network_node("timm/tf_efficientnet_lite0")


@pytest.mark.parametrize(
    ("words", "network"),
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
def test_the_network_of_the_words_replaces_a_presets(words: list[str], network: dict[str, Any]) -> None:
    assert compose_config(words).module.network == network


def test_two_networks_in_the_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model: 'timm/resnet18' names the network, and module.network describes"):
        compose_config(["model=timm/resnet18", f"module.network._target_={SMALL}"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("resnet18", "Did you mean 'timm/resnet18' or 'torchvision/resnet18'"),
        ("tim/resnet18", "Did you mean 'timm'"),
        ("timm/", "Expected timm/NAME"),
        (18, "model: expected a text or null, found the int 18"),
    ],
)
def test_a_network_that_is_named_in_no_form(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict({"model": value})


@pytest.mark.rows("D03")
@pytest.mark.parametrize("name", sorted(file.stem for file in (PRESETS_DIR / "experiment").glob("*.yaml")))
@pytest.mark.parametrize("schedule", sorted(file.stem for file in (PRESETS_DIR / "lr_scheduler").glob("*.yaml")))
def test_every_recipe_is_a_config_that_can_be_used_with_every_schedule(name: str, schedule: str) -> None:
    made = compose_config([f"experiment={name}", f"lr_scheduler={schedule}", "runtime=auto"])
    check_targets(made)  # every class it names is there
    node = made.module.lr_scheduler
    if schedule == "constant":
        assert node is None
    else:
        assert isinstance(node, dict)
        target = resolve(node["_target_"], key="module.lr_scheduler")
        takes = set(inspect.signature(target).parameters)
        assert set(node) - {"_target_"} <= takes  # none is left over from the recipe's own schedule
    assert (made.trainer.channels_last, made.trainer.threads, made.trainer.compile) == ("auto",) * 3
