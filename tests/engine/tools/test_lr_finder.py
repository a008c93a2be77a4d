"""The learning-rate finder: it changes no bit of the state, its suggestion trains well, and its command."""

from __future__ import annotations

import copy
import csv
import importlib
import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sightline as package
from helpers.commands import Command, python
from sightline import LRCurve
from sightline.compose.lr_find import lr_key
from sightline.config.schema import TrainConfig
from sightline.core.errors import ConfigError, DataError, NonFiniteLossError, RunFailedError
from sightline.core.types import Batch, Schedule, TrainState
from sightline.data.augment.flip_shift import Flip
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.adapter import LoaderAdapter
from sightline.data.loading.loader import BatchLoader
from sightline.engine.ema import ModelEMA
from sightline.engine.mixup import MixupCutMix
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.tools.lr_finder import find_lr
from sightline.engine.trainer import Trainer
from sightline.models.networks import SmallCNN


def loader(n: int = 90) -> BatchLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    data = PackedDataset(images, labels, tuple(map(str, range(n))), ("dark", "light"))
    return BatchLoader(data, Preprocess(8, 8, 1, (0.5,), (0.25,)), 16, shuffle=True, augment=[Flip()], seed=3)


class Net(nn.Module):
    """A network with every kind of state: weights, a frozen layer, dropout, running statistics, a buffer that is not
    stored, and a number and a list that are not tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.BatchNorm2d(4).eval().requires_grad_(False)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.calls = 0
        self.notes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.notes.append(len(x))
        self.seen = self.seen + len(x)  # another tensor each time
        out: Tensor = self.head(self.drop(self.frozen(self.norm(self.conv(x))).relu().mean((2, 3))))
        return out


def make(kind: str = "adam", **options: Any) -> tuple[SupervisedTask, TrainState, BatchLoader]:
    torch.manual_seed(0)
    model = Net()
    parts = [{"params": [*model.conv.parameters(), *model.norm.parameters()], "lr": 0.001}]
    parts.append({"params": [*model.head.parameters()]})
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(parts, lr=0.01, amsgrad=True)
        if kind == "adam"
        else torch.optim.SGD(parts, lr=0.01, momentum=0.9)
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.001, 0.01], total_steps=60)
    state = TrainState(model, optimizer, [Schedule(cycle, "step")], ema=ModelEMA.start(model))
    task = SupervisedTask(
        nn.CrossEntropyLoss(), average=ModelEMA(0.9), accumulate=2, clip=1.0, mix=MixupCutMix(0.2), **options
    )
    return task, state, loader()


def all_state(task: Any, state: TrainState, train: BatchLoader) -> bytes:
    """All state that must not change, as bytes."""
    assert state.optimizer is not None
    assert state.ema is not None
    content = {
        "model": state.model.state_dict(),
        "rest": [state.model.seen, state.model.calls, state.model.notes],
        "grads": [p.grad for p in state.model.parameters()],
        "trained": [p.requires_grad for p in state.model.parameters()],
        "modes": [m.training for m in (*state.model.modules(), *state.ema.modules())],
        "ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedules": [{k: v for k, v in s.scheduler.state_dict().items() if k[0] != "_"} for s in state.schedules],
        "counters": (state.epoch, state.step, state.batch, state.best, state.history, state.loader),
        "place": (train._epoch, train._batch),
        "generators": (torch.get_rng_state(), random.getstate(), np.random.get_state()),  # noqa: NPY002
        "task": sorted(map(str, vars(task))),
    }
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# ---- unchanged state ----


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("trained", [0, 7], ids=["before the first step", "in the middle of an epoch"])
@pytest.mark.parametrize("high", [1e-3, 1e6], ids=["to the end", "until it diverges"])
def test_all_state_is_unchanged(kind: str, trained: int, high: float) -> None:
    task, state, train = make(kind)
    if trained:
        trainer = Trainer(task, state, train, max_epochs=2, runtime=Runtime("cpu", seed=1))
        trainer.callbacks = ()
        trainer._handlers["on_step_end"] = [lambda t, _: t.interrupt() if t.state.step == trained else None]
        assert trainer.fit().interrupted
        assert state.batch == 1
    next(iter(state.model.parameters())).grad = torch.ones(4, 1, 3, 3)
    objects = [*map(id, state.model.parameters()), *map(id, state.model.buffers())]
    before = all_state(task, state, train)
    curve = find_lr(task, state, train, low=1e-6, high=high, steps=40, runtime=Runtime("cpu", seed=1))
    assert all_state(task, state, train) == before
    assert [*map(id, state.model.parameters()), *map(id, state.model.buffers())] == objects
    if kind == "sgd":
        assert curve.diverged == (high > 1)


def test_training_afterwards_equals_training_without_it() -> None:
    results = []
    for find in (False, True):
        task, state, train = make()
        if find:
            find_lr(task, state, train, steps=30, runtime=Runtime("cpu", seed=1))
        Trainer(task, state, train, max_epochs=2, runtime=Runtime("cpu", seed=1)).fit()
        results.append(copy.deepcopy(state.model.state_dict()))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


class Failing(SupervisedTask):
    """Raises `error` in the fifth step, after its update."""

    error: BaseException = RuntimeError("out of memory")

    def train_step(self, state: TrainState, batch: Batch) -> Any:
        output = super().train_step(state, batch)
        if state.step == 4:
            raise self.error
        return output


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["raised", "interrupted"])
def test_all_state_is_unchanged_after_an_error(error: BaseException) -> None:
    _, state, train = make()
    task = Failing(nn.CrossEntropyLoss())
    task.error = error
    before = all_state(task, state, train)
    with pytest.raises(type(error)):
        find_lr(task, state, train, high=1.0)
    assert all_state(task, state, train) == before


def test_a_learned_loss_and_a_foreign_loader_are_unchanged() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return nn.functional.cross_entropy(output * self.scale, target)

    model, loss = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), Scaled()
    state = TrainState(model, torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1))
    batches = [(batch.x, batch.y) for batch in loader()]
    train = LoaderAdapter(batches)
    place = dict(vars(train))
    assert len(find_lr(SupervisedTask(loss), state, train, high=1e-2, steps=20).lrs) == 20
    assert loss.scale.item() == 1
    assert vars(train) == place


# ---- the curve ----


def test_the_rate_grows_evenly_and_groups_keep_their_ratio() -> None:
    task, state, train = make("sgd")
    assert state.optimizer is not None
    seen: list[tuple[float, ...]] = []
    step = task.train_step

    def recording(state: TrainState, batch: Batch) -> Any:
        seen.append(tuple(group["lr"] for group in state.optimizer.param_groups))  # type: ignore[union-attr]
        return step(state, batch)

    task.train_step = recording  # type: ignore[method-assign]
    curve = find_lr(task, state, train, low=1e-5, high=1e-2, steps=31)
    assert curve.lrs == pytest.approx([1e-5 * 10 ** (i / 10) for i in range(31)])
    assert [high for _, high in seen] == pytest.approx(curve.lrs)
    assert [low for low, _ in seen] == pytest.approx([lr / 10 for lr in curve.lrs])


def test_the_ratio_is_that_of_the_highest_rates_for_any_schedule() -> None:
    model = Net()
    groups = [{"params": [*model.conv.parameters()], "lr": 0.02}, {"params": [*model.head.parameters()]}]
    scheduler = torch.optim.lr_scheduler
    for make_one in (
        lambda optimizer: scheduler.CyclicLR(optimizer, 1e-4, [0.02, 0.1]),  # starts with the same rate for both
        lambda optimizer: scheduler.LambdaLR(optimizer, lambda step: 0.0),  # starts with a rate of 0
    ):
        optimizer = torch.optim.SGD([dict(group) for group in groups], lr=0.1, momentum=0.9)
        schedules = [Schedule(make_one(optimizer), "step")]
        seen: list[tuple[float, float]] = []
        state = TrainState(model, optimizer, schedules)
        find_lr(
            SupervisedTask(nn.CrossEntropyLoss()),
            state,
            loader(),
            high=0.01,
            steps=5,
            on_step=lambda *_: seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"])),  # noqa: B023
        )
        assert seen[-1] == pytest.approx((0.002, 0.01))


def test_the_first_steps_equal_those_of_training() -> None:
    """At a constant rate, the losses equal those of the trainer over several epochs."""
    task, state, train = make("sgd")
    state.schedules.clear()
    curve = find_lr(task, state, train, low=0.01, high=0.01 * (1 + 1e-12), steps=15, runtime=Runtime("cpu", seed=1))
    task, state, train = make("sgd")
    state.schedules.clear()
    for group, lr in zip(state.optimizer.param_groups, (0.001, 0.01), strict=True):  # type: ignore[union-attr]
        group["lr"] = lr
    losses: list[float] = []
    trainer = Trainer(task, state, train, max_epochs=3, runtime=Runtime("cpu", seed=1))
    trainer._handlers["on_step_end"] = [lambda _, output: losses.append(float(output.loss))]
    trainer.fit()
    assert curve.losses == pytest.approx(losses[:15], rel=1e-5)


def test_the_smoothing_is_bias_corrected() -> None:
    _, state, train = make("sgd")
    curve = find_lr(SupervisedTask(nn.CrossEntropyLoss()), state, train, high=1e-3, steps=20)
    average = 0.0
    for i, (loss, smoothed) in enumerate(zip(curve.losses, curve.smoothed, strict=True), start=1):
        average = 0.98 * average + 0.02 * loss
        assert smoothed == pytest.approx(average / (1 - 0.98**i))


def synthetic(low: float, bottom: float, high: float, noise: float = 0.0) -> LRCurve:
    """A flat loss of 2, a fall to 0.5 from `low` to `bottom`, and a rise to 8 from there on to `high`."""
    draw = random.Random(0)
    lrs = [1e-7 * 10 ** (8 * i / 199) for i in range(200)]
    losses = []
    for lr in lrs:
        fall = min(max((math.log10(lr) - math.log10(low)) / (math.log10(bottom) - math.log10(low)), 0), 1)
        rise = max((math.log10(lr) - math.log10(bottom)) / (math.log10(high) - math.log10(bottom)), 0)
        losses.append(2 - 0.75 * (1 - math.cos(math.pi * fall)) + 7.5 * rise**2 + draw.uniform(-noise, noise))
    return LRCurve(lrs, losses, losses)


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_a_known_valley_is_found(noise: float) -> None:
    curve = synthetic(1e-4, 1e-1, 10, noise)
    assert curve.suggestion == curve.valley
    assert curve.valley == pytest.approx(10**-2.5, rel=0.6)
    assert curve.steepest == pytest.approx(10**-2.5, rel=0.6)
    assert curve.fall == pytest.approx(0.75, abs=0.02)


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    lrs = [10 ** (i / 10) for i in range(50)]
    for losses in ([2.0] * 50, [2 + i / 10 for i in range(50)]):
        curve = LRCurve(lrs, losses, losses)
        assert (curve.suggestion, curve.steepest) == (None, None)
    assert LRCurve([1e-7], [2.0], [2.0]).suggestion is None


# ---- errors ----


def test_invalid_arguments_are_refused() -> None:
    task, state, train = make()
    for wrong in ({"low": 0.0}, {"low": 1.0, "high": 0.1}, {"high": math.inf}, {"steps": 1}, {"stop_factor": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            find_lr(task, state, train, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 < low < high, found low=3"):
        package.lr_find({}, low=3, high=2)
    with pytest.raises(TypeError, match=r"'modle' cannot be passed in. Did you mean 'model'"):
        package.lr_find({}, modle=nn.Linear(1, 1))


def test_an_unusable_loader_or_optimiser_is_refused() -> None:
    task, state, train = make()
    with pytest.raises(DataError, match="would use up the batches of a generator"):
        find_lr(task, state, iter(train))
    with pytest.raises(DataError, match="yielded no batches"):
        find_lr(task, state, [])
    with pytest.raises(ConfigError, match="no optimiser"):
        find_lr(task, TrainState(state.model), train)
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="learning rate of 0"):
        find_lr(task, TrainState(model, torch.optim.SGD(model.parameters(), lr=0.0)), train)


def test_a_loss_that_is_nan_from_the_start_is_an_error() -> None:
    task, state, _ = make()
    broken = [Batch(torch.full((4, 1, 8, 8), math.nan), torch.tensor([0, 1, 0, 1]))]
    before = all_state(task, state, loader())
    with pytest.raises(NonFiniteLossError, match=r"nan at the first step.*no learning rate will help"):
        find_lr(task, state, broken)
    assert all_state(task, state, loader()) == before


def test_a_step_that_fails_is_an_error_with_its_number() -> None:
    with pytest.raises(RunFailedError, match="Step 5 of the learning-rate finder failed with RuntimeError: out of mem"):
        package.lr_find({}, task=Failing(nn.CrossEntropyLoss()), steps=20)


# ---- with a config ----


@pytest.mark.slow
def test_the_suggestion_trains_the_digits_as_well_as_the_preset(tmp_path: Path) -> None:
    config = {"trainer": {"max_epochs": 3, "progress": False}, "run": {"dir": str(tmp_path)}}
    curve = package.lr_find(config, steps=80)
    assert curve.suggestion is not None
    assert 1e-4 < curve.suggestion < 0.1
    assert not list(tmp_path.iterdir())
    node = {**TrainConfig.from_dict(config).module.optimizer, "lr": curve.suggestion}
    accuracies = [
        package.fit({**config, "module": module}).metrics["test"]["accuracy"] for module in ({}, {"optimizer": node})
    ]
    assert accuracies[1] > accuracies[0] - 0.02


def test_a_model_that_is_passed_is_unchanged() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = copy.deepcopy(model.state_dict())
    package.lr_find({}, model=model, steps=20)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_optimiser_that_is_passed_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before, names = copy.deepcopy((model.state_dict(), optimizer.state_dict())), set(vars(optimizer))
    strides = [parameter.stride() for parameter in model.parameters()]
    objects = [*map(id, (*model.parameters(), *model.buffers()))]

    def same() -> bool:
        weights = all(torch.equal(before[0][name], value) for name, value in model.state_dict().items())
        return (
            weights
            and optimizer.state_dict() == before[1]
            and set(vars(optimizer)) == names  # no step that a schedule has wrapped
            and [parameter.stride() for parameter in model.parameters()] == strides
            and [*map(id, (*model.parameters(), *model.buffers()))] == objects
            and model._compiled_call_impl is None
        )

    config = {"trainer": {"channels_last": True}}
    package.lr_find(config, model=model, optimizer=optimizer, steps=20)
    assert same()

    def failing(*_: Any, **__: Any) -> LRCurve:
        assert model._compiled_call_impl is not None
        raise DataError("no step is taken")

    monkeypatch.setattr("sightline.compose.lr_find.find_lr", failing)
    with pytest.raises(DataError, match="no step is taken"):
        package.lr_find({"trainer": {"channels_last": True, "compile": True}}, model=model, optimizer=optimizer)
    assert same()


@pytest.mark.parametrize(
    ("module", "key"),
    [
        ({}, "module.optimizer.lr"),
        ({"optimizer": {"class": "torch.optim.SGD", "kwargs": {"lr": 0.1}}}, "module.optimizer.kwargs.lr"),
        ({"lr_scheduler": None}, "module.optimizer.lr"),
        ({"lr_scheduler": {"_target_": "x.OneCycleLR", "max_lr": 0.1}}, "module.lr_scheduler.max_lr"),
        ({"lr_scheduler": [{"_target_": "x.OneCycleLR", "max_lr": 0.1}]}, "module.lr_scheduler[0].max_lr"),
    ],
)
def test_the_key_that_is_named_sets_the_rate(module: dict[str, Any], key: str) -> None:
    assert lr_key(TrainConfig.from_dict({"module": module})) == key


# ---- the command ----


def test_the_command_prints_a_table_and_writes_a_plot_and_a_csv(here: Command, tmp_path: Path) -> None:
    importlib.import_module("matplotlib.font_manager")  # the first import may print that it lists the fonts
    done = here("lr-find", "--out", "found.png", "--steps", "60")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "lr\tloss\tsmoothed"
    assert lines[1].startswith("1.00e-07\t2.")
    assert 10 <= sum("\t" in line for line in lines) <= 11
    (use,) = [line.split()[-1] for line in lines if line.startswith("use it")]
    assert use.startswith("module.optimizer.lr=0.0")
    assert {file.name for file in tmp_path.iterdir()} == {"found.png", "found.csv"}  # and no run
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert 30 <= len(rows) <= 60
    assert all(float(row["lr"]) > 0 and math.isfinite(float(row["loss"])) for row in rows)
    assert list(rows[0]) == ["lr", "loss", "smoothed"]


@pytest.fixture
def lr_find(here: Command) -> Callable[..., tuple[int, str, str]]:
    """The command in an empty directory: (exit code, output, errors)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        done = here("lr-find", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


def test_without_matplotlib_the_table_is_printed(lr_find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.core import locate
    from sightline.core.errors import MissingExtraError

    original = locate.import_optional

    def require(module: str) -> Any:
        if module.partition(".")[0] == "matplotlib":
            raise MissingExtraError("the package 'matplotlib' is not installed. Install it with: …")
        return original(module)

    monkeypatch.setattr(locate, "import_optional", require)
    code, out, err = lr_find("--steps", "40")
    assert code == 0
    assert "use it" in out
    assert err == "sightline: no plot: the package 'matplotlib' is not installed. Install it with: …\n"
    assert [file.name for file in tmp_path.iterdir()] == ["lr-find.csv"]


def test_the_extra_that_is_missing_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\nfrom sightline.core import locate\n"
        "try:\n    locate.import_optional('matplotlib.figure')\nexcept Exception as error:\n    print(error)"
    )
    assert "sightline[report]" in python(code)


def test_a_frozen_start_prints_a_note(lr_find: Any, tmp_path: Path) -> None:
    save_file(SmallCNN().state_dict(), tmp_path / "w.safetensors")
    arguments = ("weights=w.safetensors", "module.freeze_epochs=1", "--steps", "40", "--low", "1e-4", "--high", "1")
    code, out, _ = lr_find(*arguments)
    assert code == 0
    assert "note: this is for the first epochs, in which module.freeze_epochs trains only the head" in out


def test_a_loss_that_does_not_fall_gives_no_suggestion(lr_find: Any) -> None:
    code, out, err = lr_find(
        "--steps", "20", "--low", "100", "--high", "1e6", "module.optimizer._target_=torch.optim.SGD"
    )
    assert code == 1
    assert "use it" not in out
    assert "sightline: no suggestion" in err
    assert "change --low and --high" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5"], "expected an integer >= 20, found 5"),
        (["--low", "-1"], "expected a number > 0"),
        (["--low", "1", "--high", "0.1"], "--low: 1 is not below --high, 0.1."),
        (["--out", "plot.gif"], "'plot.gif' does not have the suffix of a plot (.png, .svg, .pdf). Use 'plot.png'."),
        (["--out", "nowhere/plot.png"], "the directory 'nowhere' does not exist"),
        (["--out", "there.png"], "'there.png' already exists. Choose another name."),
        (["--out", "values.png"], "'values.csv' already exists. Choose another name."),
        (["module.optimiser.lr=1"], "Did you mean 'module.optimizer'?"),
    ],
)
def test_mistakes_are_errors_before_anything_is_trained(
    arguments: list[str], message: str, lr_find: Any, tmp_path: Path
) -> None:
    (tmp_path / "there.png").touch()
    (tmp_path / "values.csv").touch()
    code, out, err = lr_find(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(list(tmp_path.iterdir())) == 2
