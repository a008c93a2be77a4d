"""The callback that prints and writes the results of each epoch and calls the user's callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sightline.core.files import expand_user, stale_temporaries, write_json
from sightline.core.types import StepOutput, TrainState
from sightline.engine.trainer import Callback, Trainer
from sightline.learner.metrics import is_better
from sightline.learner.plan import TrainArguments, direction
from sightline.learner.plots import PlotInput, file_names, visualize
from sightline.learner.state import LearnerState
from sightline.learner.task import running
from sightline.runs.recorders import CurveRecorder

ALL, BEST, LOSS_PLOT, PLOTS = "all_models", "best_models", "epoch_{}_loss.png", "metric_files.json"
"""The directories of models, the file name of the loss plot, and the file that maps metrics to the names of their
plots."""
_STATE = "learner"


class OutputsCallback(Callback):
    """Writes models, plots and logs, prints the epoch lines and calls the learner's callbacks.

    It must run before the checkpointer, so that a checkpoint is never ahead of the files."""

    def __init__(
        self, learner: LearnerState, plan: TrainArguments, directory: Path, curves: CurveRecorder | None = None
    ):
        self.learner = learner
        self.plan = plan
        self.directory = directory
        self._plots = file_names(name for metrics in plan.metrics.values() for name in metrics)
        self.curves = curves
        self._batch_callbacks = self._make_batch_callbacks()

    def on_fit_start(self, trainer: Trainer) -> None:
        """Creates the directories, removes stale temporary files and restores the history of finished epochs."""
        for name in (ALL, *([BEST] if self.plan.deciding else [])):
            (self.directory / name).mkdir(exist_ok=True)
            for stale in (
                file for kind in ("*.pth", "*.json") for file in stale_temporaries(self.directory / name, kind)
            ):
                stale.unlink()
        if self.plan.save_metrics and any(name != safe for name, safe in self._plots.items()):
            write_json(self.directory / PLOTS, self._plots)
        self.take_over(trainer.state)
        self._started = time.perf_counter()

    def take_over(self, state: TrainState) -> None:
        """Copies the history of the finished epochs to the learner and its metrics."""
        self._follow(state)
        for split, name, metric in self._metrics():
            if isinstance(getattr(metric, "history", None), list):
                metric.history[:] = self._values(f"{split}_{name}")

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Prints the epoch's first line and calls the epoch-start callbacks."""
        epoch = trainer.state.epoch
        print(f"Epoch {epoch + self.learner.first_epoch} of {trainer.max_epochs}")
        self.learner.on_epoch_start(epoch + self.learner.first_epoch)
        self.learner.call("epoch_start", epoch + 1)

    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        """Calls the batch-end callbacks."""
        for callback in self._batch_callbacks:
            callback(trainer)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Saves the model, prints and logs the record, draws the plots and calls the epoch-end callbacks."""
        learner, plan = self.learner, self.plan
        number = int(record["epoch"]) + learner.first_epoch
        self._follow(trainer.state)
        if plan.save_models == "all" and (int(record["epoch"]) + 1) % plan.save_model_interval == 0:
            learner.save_model(self.directory / ALL / f"model_{number}.pth", plan.save_architecture)
        lines = [f"Epoch: {number}, Duration: {record['train_duration']} , Train Loss: {record['train_loss']}"]
        print(lines[0])
        for line in self._metric_lines(trainer, record, number):
            print(line)
            lines.append(line)
        if plan.save_logs is not None:
            path = expand_user(plan.save_logs)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        for _, _, metric in self._metrics():
            if hasattr(metric, "add_history"):
                metric.add_history()
        self._log(trainer, record)
        if plan.display_metrics or plan.save_metrics:
            self._draw(number)
        if plan.lr_schedule_late:
            trainer.task.set_rate(trainer.state, int(record["epoch"]))  # type: ignore[attr-defined]
        learner.on_epoch_end(
            number, learner.train_metrics, learner.test_metrics, record["train_loss"], record["train_duration"]
        )
        published = {"train_duration": "duration"}
        values = {published.get(name, name): value for name, value in record.items() if name != "epoch"}
        learner.call("epoch_end", number + 1 - learner.first_epoch, values)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Calls the training-completed callbacks, unless training was interrupted."""
        if trainer.interrupted:
            return
        duration = time.perf_counter() - self._started
        learner = self.learner
        learner.on_training_completed(learner.train_metrics, learner.test_metrics, duration)
        last = trainer.state.history[-1].items()
        values = {name: value for name, value in last if name not in ("epoch", "train_duration")}
        learner.call("training_completed", {"train_duration": duration} | values)

    def _metric_lines(self, trainer: Trainer, record: dict[str, float], number: int) -> Iterator[str]:
        """Yields the lines of an epoch after the first one; saves the model if it is the best so far."""
        plan = self.plan
        best: dict[str, float] = trainer.state.callbacks.setdefault(_STATE, {"best": {}})["best"]
        for split in ("test", "val"):
            for position, (name, metric) in enumerate(plan.metrics.get(split, {}).items()):
                value = record[f"{split}_{name}"]
                if position == 0:
                    previous = best.get(split)
                    if is_better(metric, value, previous):
                        best[split] = value
                        start = (
                            previous if previous is not None else float("inf") if direction(metric) == "min" else 0.0
                        )
                        line = f"{name} improved from {start} to {value}"
                        if plan.deciding == (split, name):
                            file = self.directory / BEST / f"model_{number}.pth"
                            self.learner.save_model(file, plan.save_architecture)
                            line += f" New Best Model saved in {file}"
                        yield line
                    else:
                        yield f"{name} did not improve, current best is {previous}"
                yield f"{split.title()} {name} : {value}"
        for name in plan.metrics["train"]:
            yield f"Train {name} : {record[f'train_{name}']}"

    def _metrics(self) -> Iterator[tuple[str, str, Any]]:
        for split, metrics in self.plan.metrics.items():
            for name, metric in metrics.items():
                yield split, name, metric

    def _values(self, name: str) -> list[float]:
        return [record[name] for record in self.learner.records if name in record]

    def _follow(self, state: TrainState) -> None:
        self.learner.records = state.history
        self.learner.loss_history[:] = self._values("train_loss")

    def _draw(self, number: int) -> None:
        plan, learner = self.plan, self.learner
        epochs = [int(record["epoch"]) + learner.first_epoch for record in learner.records]
        curves = [(LOSS_PLOT.format(number), PlotInput(self._values("train_loss"), "Train Loss", "red"))]
        for split, name, _ in self._metrics():
            curve = PlotInput(self._values(f"{split}_{name}"), f"{split.title()} {name}", "blue")
            curves.append((f"{split}_{self._plots[name]}_epoch_{number}.png", curve))
        for file, curve in curves:
            path = self.directory / file if plan.save_metrics else None
            visualize(epochs[-len(curve.value) :], [curve], plan.display_metrics, path)

    def _log(self, trainer: Trainer, record: dict[str, float]) -> None:
        plan, epoch = self.plan, int(record["epoch"]) + 1
        if self.curves is not None:
            measured = {f"logs/{split}_metrics/{name}": record[f"{split}_{name}"] for split, name, _ in self._metrics()}
            self.curves.add(epoch, {"logs/train_loss": record["train_loss"], **measured})
        if plan.visdom_log is not None:
            epochs = torch.arange(1, epoch + 1)
            series = [("train_loss", "Train Loss")]
            series += [(f"{split}_{name}", f"{split.title()} {name}") for split, name, _ in self._metrics()]
            for name, title in series:
                values = torch.tensor(self._values(name))
                plan.visdom_log.plot_line(values, epochs[-len(values) :], win=name, title=title)

    def _make_batch_callbacks(self) -> list[Callable[[Trainer], None]]:
        """The functions to call after every batch; only user callbacks cause values to be read from the device."""
        learner = self.learner
        first = learner.first_epoch
        callbacks: list[Callable[[Trainer], None]] = []

        def call_override(trainer: Trainer) -> None:
            loss, _ = running(trainer)
            state = trainer.state
            learner.on_batch_end(state.epoch + first, state.batch - 1 + first, learner.train_metrics, loss)

        def call_added(trainer: Trainer) -> None:
            loss, values = running(trainer)
            data = {"train_loss": loss} | {f"train_{name}": value for name, value in values.items()}
            learner.call("batch_end", trainer.state.epoch + 1, trainer.state.batch, data)

        if learner.overrides("on_batch_end"):
            callbacks.append(call_override)
        if learner.added.get("batch_end"):
            callbacks.append(call_added)
        return callbacks
