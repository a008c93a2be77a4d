"""The training loop: equal to a plain torch loop, reproducible, resumable, with an error if the loss is not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.stop_at import StopAt
from sightline.core.errors import ArtifactError, ConfigError, DataError, NonFiniteLossError
from sightline.core.types import Batch, Schedule, StepOutput, Task, TrainState
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.engine.callbacks import EarlyStopping
from sightline.engine.checkpoint.content import load_checkpoint, save_checkpoint
from sightline.engine.checkpoint.writer import Checkpointer
from sightline.engine.ema import ModelEMA
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import EVENTS, Callback, Trainer, evaluate
from sightline.metrics.meter import Meter
from sightline.models.networks import SmallCNN

PREPROCESS = Preprocess(8, 8, 1, (0.5,), (0.25,))


def dataset(n: int = 50, seed: int = 0) -> PackedDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (n,), generator=generator)
    return PackedDataset(images, labels, tuple(str(i) for i in range(n)), ("a", "b", "c"))


def loader(n: int = 50) -> BatchLoader:
    return BatchLoader(dataset(n), PREPROCESS, 16, shuffle=True, augment=[Flip(), ShiftCrop(1)], seed=3)


def network(dropout: float = 0.0) -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(1, 3, width=4, dropout=dropout)


def make(
    directory: Path | None = None,
    *,
    epochs: int = 2,
    callbacks: tuple[Callback, ...] = (),
    dropout: float = 0.3,
    scheduler: Callable[[torch.optim.Optimizer], Schedule] | None = None,
    **more: object,
) -> Trainer:
    model = network(dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    state = TrainState(model, optimizer, [scheduler(optimizer)] if scheduler else [])
    writer = (Checkpointer(directory / "last.ckpt", directory / "best.ckpt", "val_loss", "min"),) if directory else ()
    evals = {"val": BatchLoader(dataset(20, seed=1), PREPROCESS, 8)}
    task = SupervisedTask(nn.CrossEntropyLoss())
    return Trainer(
        task, state, loader(), evals, max_epochs=epochs, callbacks=(*writer, *callbacks), runtime=Runtime(), **more
    )  # type: ignore[arg-type]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_equal_to_the_bit_with_a_plain_loop() -> None:
    """Same network, data order and initial weights: a loop by hand and the Trainer give the same weights."""
    plain = network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)
    loss = nn.CrossEntropyLoss()
    batches = loader()
    plain.train()
    for _ in range(2):
        for batch in batches:
            optimizer.zero_grad()
            loss(plain(batch.x), batch.y).backward()
            optimizer.step()
            schedule.step()

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)
    state = TrainState(model, optimizer, [Schedule(schedule, "step")])
    evals = {"val": BatchLoader(dataset(20, seed=1), PREPROCESS, 8)}
    Trainer(SupervisedTask(loss), state, loader(), evals, max_epochs=2, log_every=3).fit()
    assert state.step == 8
    assert same(weights(plain), weights(model))


def test_two_runs_give_the_same_bits() -> None:
    first, second = make(), make()
    first.fit()
    torch.rand(7)  # draws of other code from torch's generator do not affect the run
    second.fit()
    assert same(weights(first.state.model), weights(second.state.model))
    assert first.state.history == second.state.history


@pytest.mark.parametrize("step", [1, 3, 4, 6, 7])
def test_interrupted_and_resumed_equals_uninterrupted(step: int, tmp_path: Path) -> None:
    """At the first step, within an epoch, at its last step, in the second epoch, just before the end."""

    def one_cycle(optimizer: torch.optim.Optimizer) -> Schedule:
        return Schedule(torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=8), "step")

    uninterrupted = make(tmp_path / "uninterrupted", scheduler=one_cycle)
    uninterrupted.fit()
    first = make(tmp_path / "cut", callbacks=(StopAt(step),), scheduler=one_cycle)
    result = first.fit()
    assert result.interrupted
    assert result.steps == step
    second = make(tmp_path / "cut", scheduler=one_cycle)
    load_checkpoint(tmp_path / "cut" / "last.ckpt", second.state)
    assert not second.fit().interrupted
    assert same(weights(uninterrupted.state.model), weights(second.state.model))
    assert uninterrupted.state.history == second.state.history
    assert uninterrupted.state.best == second.state.best


def test_events_come_in_the_documented_order() -> None:
    seen: list[str] = []

    class Watch(Callback):
        pass

    for event in EVENTS:
        setattr(Watch, event, lambda self, *args, event=event: seen.append(event))
    make(epochs=2, callbacks=(Watch(),), eval_every=2).fit()
    steps = ["on_step_end"] * 4
    assert seen == [
        "on_fit_start",
        *("on_epoch_start", *steps, "on_epoch_end"),
        *("on_epoch_start", *steps, "on_eval_end", "on_epoch_end"),
        "on_fit_end",
    ]


def test_an_exception_is_announced_and_raised() -> None:
    seen: list[BaseException] = []

    class Breaks(Callback):
        def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
            raise RuntimeError("full")

        def on_exception(self, trainer: Trainer, error: BaseException) -> None:
            seen.append(error)

    with pytest.raises(RuntimeError, match="full"):
        make(callbacks=(Breaks(),)).fit()
    assert [str(error) for error in seen] == ["full"]


def test_a_misspelt_event_is_refused() -> None:
    class Wrong(Callback):
        def on_epoch_ends(self, trainer: Trainer) -> None: ...

    with pytest.raises(TypeError, match=r"on_epoch_ends: there is no such event. Did you mean 'on_epoch_end'"):
        make(callbacks=(Wrong(),))


@pytest.mark.rows("AB8", "AB9")
def test_evaluation_changes_nothing_and_repeats() -> None:
    trainer = make()
    trainer.state.model.train()
    trainer.state.model.features[1].eval()  # a layer the user has frozen
    before = weights(trainer.state.model)
    modes = [module.training for module in trainer.state.model.modules()]
    assert trainer.evaluate("val") == trainer.evaluate("val")
    assert same(before, weights(trainer.state.model))
    assert modes == [module.training for module in trainer.state.model.modules()]


def test_evaluation_counts_every_sample_once() -> None:
    """Each sample has the same weight, also those of a smaller last batch."""
    trainer = make()
    model = trainer.state.model.eval()
    data = dataset(20, seed=1)
    with torch.no_grad():
        logits = model(PREPROCESS.normalizer()(data.images))
    metrics = trainer.evaluate("val")
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(logits, data.labels).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == data.labels).double().mean().item())


def test_a_derived_task_without_a_step_cannot_be_instantiated() -> None:
    class Misspelt(Task):
        def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
            raise AssertionError

        def evaluate_step(self, state: TrainState, batch: Batch) -> StepOutput:
            raise AssertionError

    with pytest.raises(TypeError, match=r"eval_step"):
        Misspelt()  # type: ignore[abstract]


def test_a_task_without_a_step_is_named() -> None:
    class Half:
        def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
            raise AssertionError

    with pytest.raises(TypeError, match=r"^The task Half lacks setup, begin_epoch, eval_step, predict_step\. Derive"):
        Trainer(Half(), TrainState(network()), (), max_epochs=1)  # type: ignore[arg-type]


def test_a_task_that_defines_only_its_steps_trains() -> None:
    class StepsOnly(Task):
        def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
            return SupervisedTask(nn.CrossEntropyLoss()).train_step(state, batch)

        def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
            return StepOutput(torch.zeros(()), len(batch.y))

        def predict_step(self, state: TrainState, x: Any) -> Tensor:
            return state.model(x)

    trainer, plain = make(), make()
    trainer = Trainer(StepsOnly(), trainer.state, trainer.train, max_epochs=2, runtime=Runtime())
    trainer.fit()
    plain.fit()
    assert same(weights(trainer.state.model), weights(plain.state.model))


def test_a_trainer_makes_the_average_of_its_task() -> None:
    state = make().state
    task = SupervisedTask(nn.CrossEntropyLoss(), average=ModelEMA(0.5))
    trainer = Trainer(task, state, loader(), max_epochs=1, runtime=Runtime())
    with torch.no_grad():  # the average starts with the weights loaded before training
        state.model.head.weight.fill_(0.25)
    trainer.fit()
    assert state.ema is not None
    assert not same(weights(state.ema), weights(state.model))
    again, plain = state.ema, TrainState(network(), state.optimizer)
    trainer = Trainer(task, state, loader(), max_epochs=2, runtime=Runtime())
    trainer.fit()
    assert state.ema is again
    with pytest.raises(RuntimeError, match=r"Call task.setup\(state\) before the first step"):
        task.train_step(plain, next(iter(loader())))


def test_a_network_is_evaluated_without_a_trainer() -> None:
    trainer = make(dropout=0.5)
    model, batches = trainer.state.model, BatchLoader(dataset(20, seed=1), PREPROCESS, 8)
    model.features[1].eval()
    modes = [module.training for module in model.modules()]
    assert evaluate(trainer.task, model, batches, Meter()) == trainer.evaluate("val")
    assert modes == [module.training for module in model.modules()]
    with pytest.raises(DataError, match=r"^The validation data yielded no batches\. "):
        evaluate(trainer.task, model, [], Meter(), "validation")
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"^The evaluation loss is nan\. "):
        evaluate(trainer.task, model, batches, Meter())


def test_an_average_of_weights_is_evaluated() -> None:
    trainer = make()
    trainer.state.ema = copy.deepcopy(trainer.state.model)
    with torch.no_grad():
        trainer.state.model.head.bias.fill_(math.nan)
    batches = BatchLoader(dataset(20, seed=1), PREPROCESS, 8)
    assert math.isfinite(evaluate(trainer.task, trainer.state, batches, Meter())["loss"])


def test_predict_returns_probabilities_by_row() -> None:
    trainer = make()
    probabilities, index = trainer.predict(BatchLoader(dataset(20, seed=1), PREPROCESS, 8, shuffle=True))
    assert sorted(index.tolist()) == list(range(20))
    assert torch.allclose(probabilities.sum(1), torch.ones(20))


class Poisoned(nn.Module):
    """A loss that is NaN from its nth training batch on."""

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.left -= torch.is_grad_enabled()
        return nn.functional.cross_entropy(output, target) * (math.nan if self.left < 1 else 1.0)


@pytest.mark.parametrize("log_every", [1, 3, 50])
def test_a_nan_loss_names_its_step_and_keeps_the_last_good_checkpoint(log_every: int, tmp_path: Path) -> None:
    trainer = make(tmp_path, epochs=5, log_every=log_every)
    trainer.task = SupervisedTask(Poisoned(7))
    with pytest.raises(NonFiniteLossError, match=r"became nan at step 7 \(epoch 1, batch 2\)"):
        trainer.fit()
    fresh = make()
    load_checkpoint(tmp_path / "last.ckpt", fresh.state)
    assert fresh.state.step == 4
    assert all(torch.isfinite(value).all() for value in fresh.state.model.state_dict().values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Breaks(Callback):
        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            if trainer.state.step == 8:
                trainer.state.model.head.weight.data.fill_(math.inf)

    trainer = make(tmp_path, callbacks=(Breaks(),))
    trainer.evals = {}
    with pytest.raises(NonFiniteLossError, match=r"'head\.weight' contains NaN"):
        trainer.fit()
    fresh = make()
    load_checkpoint(tmp_path / "last.ckpt", fresh.state)
    assert fresh.state.step == 4


@pytest.mark.rows("AB12")
def test_a_plateau_watches_its_metric() -> None:
    """The rate is lowered when the watched metric stops improving, only after an evaluation."""

    def plateau(optimizer: torch.optim.Optimizer) -> Schedule:
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.5, patience=0, threshold=2.0
        )
        return Schedule(scheduler, "epoch", "val_accuracy")

    trainer = make(epochs=6, scheduler=plateau, eval_every=2)
    trainer.fit()
    # evaluations after epochs 2, 4 and 6; the two after the first do not improve on it by the threshold
    assert trainer.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**2)


def test_epoch_schedules_step_once_an_epoch() -> None:
    def decay(optimizer: torch.optim.Optimizer) -> Schedule:
        return Schedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1))

    trainer = make(epochs=3, scheduler=decay)
    trainer.fit()
    assert trainer.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.1**3)


def test_should_stop_ends_after_the_epoch(tmp_path: Path) -> None:
    class Enough(Callback):
        def on_eval_end(self, trainer: Trainer, record: dict[str, float]) -> None:
            trainer.should_stop = True

    result = make(tmp_path, epochs=9, callbacks=(Enough(),)).fit()
    assert (result.epochs, result.interrupted) == (1, False)


def test_best_is_the_epoch_with_the_lowest_loss(tmp_path: Path) -> None:
    trainer = make(tmp_path, epochs=6)
    trainer.fit()
    losses = [record["val_loss"] for record in trainer.state.history]
    assert trainer.state.best == min(losses)
    fresh = make()
    load_checkpoint(tmp_path / "best.ckpt", fresh.state)
    assert fresh.state.epoch == losses.index(min(losses)) + 1
    assert fresh.evaluate("val")["loss"] == min(losses)


def test_checkpoints_contain_no_code(tmp_path: Path) -> None:
    make(tmp_path).fit()
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {"format", "model", "optimizer", "epoch", "step", "batch", "best", "history"} <= set(content)


def test_a_wrong_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.fit()
    content = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=r"cut\.ckpt. is not a checkpoint or is damaged"):
        load_checkpoint(tmp_path / "cut.ckpt", make().state)
    with pytest.raises(ArtifactError, match=r"^The checkpoint '.*' does not exist"):
        load_checkpoint(tmp_path / "none.ckpt", make().state)
    other = make()
    other.state.model = SmallCNN(1, 4, width=4)
    with pytest.raises(ArtifactError, match="belongs to another network"):
        load_checkpoint(tmp_path / "last.ckpt", other.state)


def test_the_length_of_a_schedule_cannot_change_on_resume(tmp_path: Path) -> None:
    def cosine(length: int) -> Callable[[torch.optim.Optimizer], Schedule]:
        return lambda optimizer: Schedule(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length))

    make(tmp_path, scheduler=cosine(2)).fit()
    with pytest.raises(ArtifactError, match="CosineAnnealingLR of T_max 2, which cannot be changed to 5"):
        load_checkpoint(tmp_path / "last.ckpt", make(scheduler=cosine(5)).state)


def test_any_iterable_of_batches_trains() -> None:
    """An iterable without `seek`: resuming in the middle of an epoch skips the batches already seen."""
    model = network()
    batches = list(loader())
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen: list[int] = []

    def counted() -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            seen.append(number)
            yield batch

    class Reiterable:
        def __iter__(self) -> Iterator[Batch]:
            return counted()

    trainer = Trainer(SupervisedTask(nn.CrossEntropyLoss()), state, Reiterable(), max_epochs=2)
    state.batch = 2
    assert trainer.fit().steps == 2 + 4


def test_outputs_are_detached_and_not_read_back() -> None:
    """The meter gets tensors without a graph, and losses are read back only at a log point."""
    outputs: list[StepOutput] = []

    class Collect(Callback):
        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            outputs.append(output)
            assert len(trainer.state.meters["train"]._pending) == trainer.state.batch % 3

    make(epochs=1, log_every=3, callbacks=(Collect(),)).fit()
    assert all(out.loss is not None and out.loss.grad_fn is None for out in outputs)
    assert all(out.output is not None and out.output.grad_fn is None for out in outputs)


def test_runtime_restores_the_settings_of_torch() -> None:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with Runtime(threads=threads + 1).active():
        assert torch.get_num_threads() == threads + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_runtime_refuses_a_missing_device() -> None:
    with pytest.raises(ConfigError, match="'cuda:9' is not available"):
        Runtime("cuda:9")
    with pytest.raises(ConfigError, match="'gpu' is not a torch device"):
        Runtime("gpu")


def test_dropout_depends_only_on_seed_and_step() -> None:
    one, two = Runtime(seed=1), Runtime(seed=1)
    one.reseed(5)
    first = torch.rand(3)
    torch.rand(100)
    two.reseed(5)
    assert torch.equal(first, torch.rand(3))
    Runtime(seed=2).reseed(5)
    assert not torch.equal(first, torch.rand(3))


def test_a_copy_of_the_state_continues_training() -> None:
    """Training continued with a deep copy of the state equals uninterrupted training."""
    trainer = make(epochs=4)
    twin = make(epochs=2)
    twin.fit()
    twin.max_epochs = 4
    twin.state = copy.deepcopy(twin.state)
    twin._step_schedules = []
    twin.fit()
    trainer.fit()
    assert same(weights(trainer.state.model), weights(twin.state.model))


def test_an_iterator_that_is_used_up_is_an_error() -> None:
    model = network()
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer = Trainer(SupervisedTask(nn.CrossEntropyLoss()), state, iter(list(loader())), max_epochs=2)
    with pytest.raises(DataError, match="yielded no batches in epoch 1"):
        trainer.fit()


@pytest.mark.parametrize("kind", [iter, lambda batches: (batch for batch in batches)])
def test_an_iterator_that_an_evaluation_has_used_up_is_an_error(kind: Callable[..., Any], tmp_path: Path) -> None:
    """Otherwise epochs would have no metrics, and the best checkpoint and a plateau would not change."""
    trainer = make(tmp_path, epochs=3)
    trainer.evals = {"val": kind(list(loader(20)))}
    with pytest.raises(
        DataError, match=r"The val data yielded no batches after step 8\. An iterator or a generator is empty"
    ):
        trainer.fit()
    assert [record["epoch"] for record in trainer.state.history] == [0]
    with pytest.raises(DataError, match="There are no batches to predict"):
        make().predict(iter(()))


@pytest.mark.parametrize("watching", ["checkpointer", "plateau"])
def test_a_metric_that_is_no_longer_measured_is_an_error(watching: str, tmp_path: Path) -> None:
    class Once(SupervisedTask):
        """Measures `rmse` in the first epoch only."""

        def eval_step(self, state: TrainState, batch: Batch) -> StepOutput:
            output = super().eval_step(state, batch)
            return output._replace(metrics={"rmse": 1.0} if state.epoch == 0 else None)

    trainer = make(epochs=3)
    trainer.task = Once(nn.CrossEntropyLoss())
    if watching == "plateau":
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.state.optimizer)
        trainer.state.schedules.append(Schedule(schedule, monitor="val_rmse"))
    else:
        checkpointer = Checkpointer(tmp_path / "last.ckpt", tmp_path / "best.ckpt", "val_rmse", "min")
        trainer = Trainer(
            trainer.task, trainer.state, trainer.train, trainer.evals, max_epochs=3, callbacks=[checkpointer]
        )
    with pytest.raises(ConfigError, match=r"the evaluation did not measure 'val_rmse', so .* Measured: train_loss"):
        trainer.fit()
    assert trainer.state.epoch == 1


def test_a_plateau_waits_for_the_epochs_that_are_evaluated() -> None:
    def plateau(optimizer: torch.optim.Optimizer) -> Schedule:
        return Schedule(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=9), monitor="val_loss")

    trainer = make(epochs=4, scheduler=plateau, eval_every=2)
    trainer.fit()
    assert trainer.state.schedules[0].scheduler.last_epoch == 2


@pytest.mark.parametrize("better", ["auto", "lower", ""])
def test_a_direction_is_min_or_max(better: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="better: expected 'min' or 'max'"):
        Checkpointer(tmp_path / "a", tmp_path / "b", "val_loss", better)
    with pytest.raises(ValueError, match="better: expected 'min' or 'max'"):
        EarlyStopping("val_loss", better, 3)


def test_gradients_from_outside_a_step_do_not_enter_it() -> None:
    """Neither gradients from before training nor those of a callback."""

    class Saliency(Callback):
        """Computes gradients after every step, as for a saliency map."""

        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            trainer.state.model(torch.ones(2, 1, 8, 8)).sum().backward()

    plain = make(dropout=0.0)
    plain.fit()
    dirty = make(dropout=0.0)
    dirty.state.model(torch.ones(4, 1, 8, 8)).sum().backward()
    dirty.state.model.load_state_dict(network().state_dict())  # its running statistics have changed
    dirty.fit()
    assert same(weights(plain.state.model), weights(dirty.state.model))

    class SaliencyInEvalMode(Saliency):
        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            trainer.state.model.eval()  # so that the running statistics do not change
            super().on_step_end(trainer, output)
            trainer.state.model.train()

    watched = make(dropout=0.0, callbacks=(SaliencyInEvalMode(),))
    watched.fit()
    assert same(weights(plain.state.model), weights(watched.state.model))


@pytest.mark.parametrize("kind", ["step", "epoch", "none"])
def test_the_learning_rate_of_a_log_point_is_that_of_its_step(kind: str) -> None:
    used: list[float] = []
    logged: dict[int, float] = {}

    class Notes(SupervisedTask):
        def train_step(self, state: TrainState, batch: Batch) -> StepOutput:
            assert state.optimizer is not None
            used.append(state.optimizer.param_groups[0]["lr"])
            return super().train_step(state, batch)

    class Log:
        def log(self, step: int, values: Mapping[str, float]) -> None:
            if "lr" in values:
                logged[step] = values["lr"]

    def schedule(optimizer: torch.optim.Optimizer) -> Schedule:
        return Schedule(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), kind)

    trainer = make(scheduler=None if kind == "none" else schedule, log_every=1, recorder=Log())
    trainer.task = Notes(nn.CrossEntropyLoss())
    trainer.fit()
    assert logged == dict(enumerate(used, start=1))
    assert len(set(used)) == {"step": 8, "epoch": 2, "none": 1}[kind]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("several_outputs", [False, True])
def test_targets_of_several_parts_count_their_samples(precision: str, accumulate: int, several_outputs: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return (self.one(x), self.two(x)) if several_outputs else self.one(x)

    def loss(output: Any, target: tuple[Tensor, Tensor]) -> Tensor:
        first, second = output if several_outputs else (output, output)
        assert first.dtype == torch.float32
        return nn.functional.cross_entropy(first, target[0]) + nn.functional.cross_entropy(second, target[1])

    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(torch.randn(n, 4, generator=generator), (torch.zeros(n).long(), torch.ones(n).long())) for n in (5, 5, 1)
    ]
    model = Net()
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.0))
    task = SupervisedTask(loss, precision=precision, accumulate=accumulate)
    trainer = Trainer(task, state, batches, {"val": batches}, max_epochs=1)
    record = trainer.fit().history[0]
    assert trainer.samples == 11
    assert state.meters["train"].n == 11
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        x = torch.cat([batch.x for batch in batches])
        output = model(x)
    full = tuple(part.float() for part in output) if several_outputs else output.float()
    expected = loss(full, (torch.zeros(11).long(), torch.ones(11).long())).item()
    assert record["train_loss"] == pytest.approx(expected, rel=1e-2 if precision == "bf16" else 1e-5)
    assert record["val_loss"] == pytest.approx(expected, rel=1e-2 if precision == "bf16" else 1e-5)
    if several_outputs:
        with pytest.raises(DataError, match="returns a tuple, but a prediction is a single tensor"):
            trainer.predict(batches)


def test_predictions_without_row_numbers_are_numbered_in_order() -> None:
    trainer = make()
    batches = [batch._replace(index=None) for batch in BatchLoader(dataset(20, seed=1), PREPROCESS, 8)]
    probabilities, index = trainer.predict(batches)
    assert index.tolist() == list(range(20))
    expected, rows = trainer.predict(BatchLoader(dataset(20, seed=1), PREPROCESS, 8))
    assert torch.equal(rows, index)
    assert torch.equal(probabilities, expected)


@pytest.mark.parametrize(("device", "current", "seeded"), [("cuda:0", 1, 0), ("cuda:1", 0, 1), ("cuda", 1, 1)])
def test_only_the_generator_of_the_device_in_use_is_seeded(
    device: str, current: int, seeded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generators = (torch.Generator(), torch.Generator())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    Runtime(device, seed=5).reseed(3)
    seeds = [generator.initial_seed() for generator in generators]
    assert seeds[seeded] == torch.initial_seed()
    assert seeds[1 - seeded] != torch.initial_seed()


def test_layers_frozen_by_the_user_stay_frozen() -> None:
    trainer = make(epochs=1)
    frozen = trainer.state.model.features[1].eval()
    before = frozen.running_mean.clone()
    trainer.fit()
    assert torch.equal(frozen.running_mean, before)
    trainer = make(epochs=1)
    trainer.state.model.eval()  # every layer is in eval mode, as after loading, so all are trained
    trainer.fit()
    assert trainer.state.model.features[1].num_batches_tracked == 4


def test_an_early_stop_is_evaluated_and_saved(tmp_path: Path) -> None:
    class Enough(Callback):
        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            trainer.should_stop = trainer.state.step >= 6

    trainer = make(tmp_path, epochs=9, callbacks=(Enough(),), eval_every=5)
    assert trainer.fit().epochs == 2
    assert "val_loss" in trainer.state.history[-1]
    again = make(tmp_path, epochs=9)
    load_checkpoint(tmp_path / "last.ckpt", again.state)
    assert again.fit().epochs == 2


def test_an_interrupted_trainer_can_continue() -> None:
    trainer = make(callbacks=(StopAt(3),))
    uninterrupted = make()
    assert trainer.fit().interrupted
    assert trainer.evaluate("val")["loss"] > 0
    assert not trainer.fit().interrupted
    uninterrupted.fit()
    assert same(weights(trainer.state.model), weights(uninterrupted.state.model))


class Log:
    """A recorder that collects the log points."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" in values:
            self.rows.append((step, values["loss"]))

    def close(self) -> None: ...


def test_a_log_point_does_not_depend_on_checkpoints_or_interrupts(tmp_path: Path) -> None:
    """A log point is the mean since the previous one, even if the losses were read back in between."""
    plain, checkpointed, first, second = Log(), Log(), Log(), Log()
    make(epochs=3, log_every=3, recorder=plain).fit()
    checkpointer = Checkpointer(tmp_path / "a", tmp_path / "b", "val_loss", "min", every_steps=2)
    make(epochs=3, log_every=3, recorder=checkpointed, callbacks=(checkpointer,)).fit()
    make(tmp_path, epochs=3, log_every=3, recorder=first, callbacks=(StopAt(5),)).fit()
    resumed = make(epochs=3, log_every=3, recorder=second)
    load_checkpoint(tmp_path / "last.ckpt", resumed.state)
    resumed.fit()
    assert len(plain.rows) == 4
    assert plain.rows == checkpointed.rows == first.rows + second.rows


def test_an_epoch_that_should_be_the_last_is_finished_after_an_interruption(tmp_path: Path) -> None:
    class StopHere(Callback):
        def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
            if trainer.state.step == 2:
                trainer.should_stop = True
                trainer.interrupt()

    first = make(tmp_path, epochs=3, callbacks=(StopHere(),)).fit()
    assert (first.interrupted, first.epochs, first.steps) == (True, 0, 2)
    second = make(tmp_path, epochs=3)
    load_checkpoint(tmp_path / "last.ckpt", second.state)
    result = second.fit()
    assert (result.interrupted, result.epochs, result.steps) == (False, 1, 4)
    assert "val_loss" in result.history[0]


def test_without_evaluations_the_training_loss_can_end_a_run() -> None:
    model = network()
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.0))
    stopping = EarlyStopping("train_loss", "min", patience=2, min_delta=10.0)
    trainer = Trainer(
        SupervisedTask(nn.CrossEntropyLoss()), state, loader(), max_epochs=9, eval_every=2, callbacks=(stopping,)
    )
    assert trainer.fit().epochs == 6  # the first evaluation counts as the best, two more do not


@pytest.mark.parametrize("name", ["ema", "scaler"])
def test_a_checkpoint_must_have_an_average_or_scaler_exactly_if_the_state_has(name: str, tmp_path: Path) -> None:
    def state(more: bool) -> TrainState:
        result = make().state
        if more:
            setattr(result, name, network() if name == "ema" else torch.amp.GradScaler("cpu"))
        return result

    for has in (False, True):
        save_checkpoint(tmp_path / "last.ckpt", state(has))
        load_checkpoint(tmp_path / "last.ckpt", state(has))
        with pytest.raises(ArtifactError, match=r"has none: they belong to different trainings\."):
            load_checkpoint(tmp_path / "last.ckpt", state(not has))
