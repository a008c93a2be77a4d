"""The `train` function of the params interface, which starts or resumes the run in `logdir`."""

import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.core.console import plain_console
from sightline.core.errors import argument_names
from sightline.core.files import expand_user
from sightline.core.identity import Identity, data_values
from sightline.core.locate import current_names
from sightline.core.mappings import flatten
from sightline.core.types import TrainState
from sightline.engine.runtime import Runtime
from sightline.params.data import build_loaders, open_splits
from sightline.params.files import ConsoleLines, EpochFilesCallback
from sightline.params.settings import MAY_CHANGE, NAMES, describe_value, with_defaults
from sightline.params.steps import TestMeter, TrainMeter, UserSteps
from sightline.params.updates import make_optimizer, make_schedules
from sightline.runs.directory import Run
from sightline.runs.recorders import CurveRecorder, JsonlRecorder
from sightline.session import CheckpointPolicy, FitOptions, Interface, ResumePolicy, Session

INTERFACE = Interface(
    name="params",
    again="the same call to train",
    advice="Restore the original settings to resume, or choose another logdir to start over.",
    without_checkpoint=(
        "Nothing is overwritten: choose another logdir. To start from the weights of a model_epoch_<e>.pt, use "
        "load_checkpoint(path, model)."
    ),
    traces=("model_epoch_*.pt", "events.out.*"),
)


def set_seeds(seed: int) -> None:
    """Seeds the global generators of torch (on all devices), NumPy and `random`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 the user's code may use the global generator
    torch.manual_seed(seed)


def train(
    params: Mapping[str, Any],
    model: nn.Module,
    train_step: Callable[..., Any],
    test_step: Callable[..., Any],
    datadir: str | Path,
    logdir: str | Path,
    **kwargs: Any,
) -> bool:
    """Trains `model` for `params['num_epochs']` epochs on the images in `datadir`.

    Returns True when training is done, False if Ctrl-C or SIGTERM stopped it, after writing a checkpoint.

    Every batch is passed to `train_step(x, y, model, optim, **kwargs)` or `test_step(x, y, model, **kwargs)`, which
    return (loss as a float, dict of floats or None). The metrics `train_torchmetrics` and `test_torchmetrics` in
    `kwargs` are reset at each epoch and evaluation. `logdir` receives `model_epoch_<e>.pt`, TensorBoard files,
    `log.jsonl`, and `checkpoints` to resume from.

    Called again with the same `logdir`, it resumes with the same results to the bit, or only loads the weights into
    `model` if all epochs are done. Raises ArtifactError if the images or the dict differ (except for the keys
    `MAY_CHANGE`), if another process trains there, and if the directory holds another run; ConfigError or DataError for
    an invalid dict or invalid data, before the first step."""
    settings, run = with_defaults(params), Run(expand_user(logdir))
    with argument_names(NAMES), Session(run, INTERFACE, ResumePolicy(finished="return"), report=_report) as session:
        return _train(session, settings, model, UserSteps(train_step, test_step, kwargs), datadir, kwargs)


def _train(
    session: Session,
    settings: dict[str, Any],
    model: nn.Module,
    steps: UserSteps,
    datadir: str | Path,
    kwargs: Mapping[str, Any],
) -> bool:
    run, saved, config = session.run, session.saved, {"params": describe_value(settings)}
    if saved is not None:
        session.check(
            Identity(flatten(config["params"]), MAY_CHANGE.__contains__), flatten(current_names(saved.config["params"]))
        )
    runtime = Runtime(str(settings["device"]), seed=settings["manual_seed"])
    data, preprocess, record = open_splits(settings, datadir)
    config["data"] = record["fingerprint"]
    if saved is not None:
        saved_data = data_values(saved.config["data"])
        session.check(Identity(data_values(config["data"])), saved_data, "a training with other images or labels")
    batches, test = build_loaders(settings, data, preprocess, runtime.device)
    model.to(runtime.device)
    optimizer = make_optimizer(settings, model)
    names, schedules = make_schedules(settings, optimizer, kwargs.get("test_torchmetrics"))
    state = TrainState(model, optimizer, schedules, config=config)
    state.meters["train"] = TrainMeter(kwargs.get("train_torchmetrics"))
    position = session.restore(state)
    if session.finished(state, settings["num_epochs"]):
        return True
    run_files = {run.path / "params.json": config["params"]}
    if position is None:
        run_files[run.data] = record
    else:
        _report(f"Resuming '{run.path}' from epoch {state.epoch}, step {state.step}.")
    curves = CurveRecorder()
    monitors = [schedule.monitor for schedule in schedules if schedule.monitor is not None]
    training = FitOptions(
        steps,
        state,
        batches,
        {"test": test},
        max_epochs=settings["num_epochs"],
        eval_every=lambda epoch: epoch % settings["eval_freq"] == 0,
        runtime=runtime,
        meter=partial(TrainMeter, kwargs.get("train_torchmetrics")),
        eval_meter=partial(TestMeter, kwargs.get("test_torchmetrics"), settings["eval_metric_compute_freq"] == "epoch"),
        writers=[EpochFilesCallback(run.path, settings["save_freq"], names, monitors, curves)],
        observers=[ConsoleLines()],
        recorders=[JsonlRecorder(), curves],
    )
    session.prepare(training, CheckpointPolicy("test_loss", "min", about={"data": record["fingerprint"]}))
    result = session.fit(begin=lambda: _write(run, run_files))
    if result.interrupted:
        _report(f"Stopped after step {result.steps}; the same call to train resumes from there.")
    return not result.interrupted


def _report(line: str) -> None:
    plain_console().print(line)


def _write(run: Run, files: Mapping[Path, Any]) -> None:
    """Writes the run's settings, and the record of its data."""
    for path, content in files.items():
        run.write_json(path, content)
