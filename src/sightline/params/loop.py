"""`train`: the dict, a network and two functions -> a run of the engine in `logdir`, begun or gone on with."""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.engine.checkpoint import newest_whole, restore
from sightline.engine.checkpointing import Checkpointer, kept
from sightline.engine.progress import plain_console
from sightline.engine.runtime import Runtime
from sightline.engine.signals import StopOnSignal
from sightline.engine.trainer import Trainer
from sightline.errors import ArtifactError, ConfigError, RunFailedError, first_line, listing
from sightline.files import expanded
from sightline.params.data import build_loaders, open_splits
from sightline.params.files import Leaves, Lines
from sightline.params.settings import MAY_CHANGE, completed, described, in_words_of_params
from sightline.params.steps import Steps, TestMeter, TrainMeter
from sightline.params.updates import make_optimizer, make_schedules
from sightline.runs.directory import Run
from sightline.runs.environment import environment
from sightline.runs.eventfile import EventFile
from sightline.runs.record import flat
from sightline.runs.recorders import JsonlRecorder
from sightline.types import TrainState


def set_seeds(seed: int) -> None:
    """Seeds torch on every device, NumPy and `random`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 what other people's code draws from
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
    """Trains `model` for `params['num_epochs']` epochs on the pictures in `datadir` and gives True when it is done.

    Every batch goes through `train_step(x, y, model, optim, **kwargs)` or `test_step(x, y, model, **kwargs)`, each of
    which gives (loss as a float, dict of floats or None). Of `kwargs`, `train_torchmetrics` and `test_torchmetrics`
    begin anew with each epoch and evaluation. `logdir` gets `model_epoch_<e>.pt`, TensorBoard's files, `log.jsonl`, and
    `checkpoints` to go on from.

    Called again with the same `logdir`, it goes on where it was, bit for bit, or does nothing where all is done;
    `model` gets its weights back. It refuses, with an ArtifactError, when the pictures or the dict are others (but for
    the keys `MAY_CHANGE`), when another process trains there, and when somebody else's run is there. Interrupted by
    Ctrl-C or SIGTERM it saves, and gives False. A wrong dict or wrong data is a ConfigError or a DataError before the
    first step."""
    settings, run = completed(params), Run(expanded(logdir))
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"logdir: cannot make the directory '{logdir}': {error.strerror}.") from error
    with in_words_of_params(), run.locked():
        return _train(settings, model, Steps(train_step, test_step, kwargs), datadir, run, kwargs)


def _train(
    settings: dict[str, Any], model: nn.Module, steps: Steps, datadir: str | Path, run: Run, kwargs: Mapping[str, Any]
) -> bool:
    runtime = Runtime(str(settings["device"]), seed=settings["manual_seed"])
    data, preprocess, record = open_splits(settings, datadir)
    batches, test = build_loaders(settings, data, preprocess, runtime.device)
    model.to(runtime.device)
    optimizer = make_optimizer(settings, model)
    names, schedules = make_schedules(settings, optimizer, kwargs.get("test_torchmetrics"))
    config = {"params": described(settings), "data": record["fingerprint"]}
    state = TrainState(model, optimizer, schedules, config=config)
    state.meters["train"] = TrainMeter()
    resumed_at = _go_on(run, state)
    say = plain_console().print
    made_with: dict[Path, Any] = {}
    if resumed_at is None:
        made_with = {run.data: record, run.environment: environment() | {"id": secrets.token_hex(8)}}
    elif state.epoch >= settings["num_epochs"] and not state.batch:
        say(f"'{run.path}' is trained already, {state.epoch} epochs; a larger params['num_epochs'] goes on.")
        return True
    else:
        say(f"Going on with '{run.path}' from epoch {state.epoch}, step {state.step}.")
    run.sweep()
    _write(run, made_with | {run.path / "params.json": config["params"]})
    # the points of a step that was saved stay, those after it come again
    board = EventFile(run.path, resumed_at and resumed_at[0] + 1)
    log = JsonlRecorder(run.log, resumed_at)

    def flush() -> None:
        log.flush()
        board.flush()

    monitors = [schedule.monitor for schedule in schedules if schedule.monitor is not None]
    keeper = Checkpointer(
        run.last,
        run.best,
        "test_loss",
        "min",
        every_minutes=10.0,
        about={"id": run.id, "run": run.path.name, "data": record["fingerprint"]},
        flush=flush,
    )
    trainer = Trainer(
        steps,
        state,
        batches,
        {"test": test},
        max_epochs=settings["num_epochs"],
        eval_every=lambda epoch: epoch % settings["eval_freq"] == 0,
        # the file of an epoch comes before the checkpoint that says the epoch is done
        callbacks=(Leaves(run.path, settings["save_freq"], names, monitors, board), keeper, Lines(), StopOnSignal()),
        recorder=log,
        runtime=runtime,
        meter=partial(TrainMeter, kwargs.get("train_torchmetrics")),
        eval_meter=partial(TestMeter, kwargs.get("test_torchmetrics"), settings["eval_metric_compute_freq"] == "epoch"),
    )
    try:
        with runtime.active():
            result = trainer.fit()
    except Exception as error:
        last = "There is no checkpoint yet."
        if keeper.saved_step is not None:
            last = f"The last checkpoint is of step {keeper.saved_step}; the same call of train goes on from it."
        error.add_note(f"In epoch {state.epoch}, batch {state.batch} (step {state.step + 1}). {last}")
        raise
    finally:
        for written in (log, board):
            with suppress(OSError):  # a full disk, which the checkpoint has told of
                written.close()
    if result.interrupted:
        say(f"Stopped after step {result.steps}; the same call of train goes on from there.")
    return not result.interrupted


def _write(run: Run, files: Mapping[Path, Any]) -> None:
    """Writes what the run is made with."""
    try:
        for path, content in files.items():
            run.write_json(path, content)
    except OSError as error:
        raise RunFailedError(
            f"logdir: cannot write to '{run.path}': {first_line(error)}. Make room, or choose another logdir."
        ) from error


def _go_on(run: Run, state: TrainState) -> tuple[int, int] | None:
    """Fills the state from the run's newest checkpoint; gives its (step, epoch), None for a run that begins."""
    files = kept(run.last)
    if not files:
        theirs = sorted(file.name for name in ("model_epoch_*.pt", "events.out.*") for file in run.path.glob(name))
        if theirs:
            raise ArtifactError(
                f"logdir: '{run.path}' holds a run that cannot be gone on with, for it has no checkpoints of "
                f"sightline.params, and that is not written over: {listing(theirs, 3)}. Choose another logdir; "
                f"load_checkpoint(path, model) begins with the weights of a model_epoch_<e>.pt."
            )
        return None
    path, content = newest_whole(files, lambda line: print(f"sightline: {line}", file=sys.stderr))
    before, now = (flat(config.get("params", {})) for config in (content["config"], state.config))
    if not before:
        raise ArtifactError(f"logdir: '{run.path}' is a run of another kind. Choose another logdir.")
    differ = [
        f"{key} (was {before.get(key)}, is {now.get(key)})"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in MAY_CHANGE
    ]
    if differ:
        raise ArtifactError(
            f"logdir: '{run.path}' holds a run of other params: {listing(differ)}. Put them back to go on with it, or "
            f"choose another logdir to begin anew."
        )
    if content["config"]["data"] != state.config["data"]:
        raise ArtifactError(
            f"datadir: the pictures or labels are not those that the run in '{run.path}' began with. Put them back to "
            f"go on with it, or choose another logdir to begin anew."
        )
    restore(content, state, path)
    return state.step, state.epoch
