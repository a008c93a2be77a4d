"""Everything a run computes with, made in one straight line: data -> network -> loss -> task -> optimiser. Nothing is
written but the data cache; what a run leaves is `build.py`'s."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.config.checks import (
    check_conflicts,
    check_labels,
    check_loss,
    check_monitors,
    check_owned,
    check_precision,
    check_targets,
)
from sightline.config.data import (
    data_record,
    data_source,
    drawn_as,
    eval_loaders,
    open_data,
    train_loader,
    with_eval_batch_size,
)
from sightline.config.meters import Meters, build_meters, with_known_direction
from sightline.config.module import (
    better_direction,
    build_loss,
    build_network,
    build_task,
    make_freeze,
    make_optimizer,
    make_schedules,
    tuned,
    with_class_weights,
)
from sightline.config.schema import TrainConfig
from sightline.config.weights import with_expected_preprocess
from sightline.data.loader import BatchLoader
from sightline.data.packed import PackedDataset
from sightline.data.preprocess import Preprocess
from sightline.engine.runtime import Runtime
from sightline.errors import ConfigError, ModelError
from sightline.files import expanded
from sightline.models.spec import ModelSpec, check_training_answer
from sightline.types import DataSource, Schedule, Task, TrainState

_SAMPLE = 4096


@dataclass
class Parts:
    """What a run computes with, before anything is written: `train` and `evals` are the loaders, `record` is what
    `data.json` will say, `chosen` which settings were chosen by timing them."""

    config: TrainConfig
    source: DataSource
    data: dict[str, PackedDataset]
    record: dict[str, Any]
    preprocess: Preprocess
    spec: ModelSpec
    loss: Any
    runtime: Runtime
    train: BatchLoader
    evals: dict[str, BatchLoader]
    state: TrainState
    task: Task
    meters: Meters
    chosen: str = ""


def build_parts(
    config: TrainConfig, given: Mapping[str, Any], fresh: bool = True, record: Mapping[str, Any] | None = None
) -> Parts:
    """Everything that computes, from the config and what was handed over; `assemble` says what may be. Nothing is
    written but the data cache. Without `fresh`, a checkpoint will fill the network, and the weights that it once began
    with need not be there any more. `record` is the `data.json` of a run that is resumed."""
    check_targets(config)
    check_owned(config, given)
    settings = config.trainer
    threads = None if settings.threads == "auto" else settings.threads
    runtime = Runtime(settings.device, seed=config.seed, threads=threads, deterministic=settings.deterministic)
    check_precision(config, runtime)
    source = data_source(config, given.get("source"), () if record is None else record["classes"])
    source = source if record is None else drawn_as(source, record)
    config = _with_absolute_root(with_expected_preprocess(config) if fresh else config)
    data, preprocess = open_data(config, source)
    check_conflicts(data)
    record = data_record(data, source)
    train = train_loader(config, data["train"], preprocess, runtime)
    with runtime.active():
        model, spec = build_network(config, given.get("model"), preprocess, source.info.outputs, fresh)
        if given.get("model") is None and config.module.weights is None:
            _initialize(model, data["train"], preprocess)
    config = with_eval_batch_size(config, model, spec.shape)
    evals = eval_loaders(config, data, preprocess, runtime)
    model.to(runtime.device)
    tried = given.get("task") is None  # another task's outputs may be anything
    meters = build_meters(config, spec, source.info.classes, runtime.device, probe=tried)
    config = with_known_direction(config, meters)
    loss = given.get("loss")
    if loss is None:
        config = with_class_weights(config, data["train"].counts)
        loss = build_loss(config, runtime.device)
    task, chosen = given.get("task"), ""
    if task is None:
        check_monitors(config, evals, meters)
        check_training_answer(model, spec)
        check_loss(loss, model, spec, runtime)
        check_labels(data["train"])
        config, chosen = tuned(config, model, loss, train, runtime)
        if chosen and settings.progress:
            print(f"runtime: {chosen}", file=sys.stderr)
        task = build_task(config, loss, spec, make_freeze(config, model, spec.shape))
    better_direction(config, config.module.monitor)  # not known is an error now, before anything is written
    settings = config.trainer
    runtime.threads = settings.threads  # type: ignore[assignment]
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(config, given.get("optimizer"), model, spec.shape)
    schedules = make_schedules(config, optimizer, len(train), meters.better)
    state = _state(config, model, optimizer, schedules, task, ours=tried)
    if settings.compile:
        model.compile()
    return Parts(
        config, source, data, record, preprocess, spec, loss, runtime, train, evals, state, task, meters, chosen
    )


def _state(
    config: TrainConfig, model: nn.Module, optimizer: Any, schedules: list[Schedule], task: Task, ours: bool
) -> TrainState:
    """What training begins from; `ours` says that the task was made from the config."""
    state = TrainState(model, optimizer, schedules, config=config.to_dict())
    try:
        task.setup(state)
    except ModelError as error:
        if not ours:
            raise
        raise ConfigError(f"module.ema: {error}") from error
    return state


def _with_absolute_root(config: TrainConfig) -> TrainConfig:
    """A run may be resumed or measured from another directory, where a relative path may be other data."""
    root = config.data.root
    if root is None:
        return config
    return replace(config, data=replace(config.data, root=str(expanded(root).absolute())))


def _initialize(model: Any, data: PackedDataset, preprocess: Preprocess) -> None:
    """Shows training images, float32 [N,C,H,W], to a network that begins with what it sees: the same ones in whatever
    order the data is listed."""
    if not hasattr(model, "initialize_from"):
        return
    rows = data.canonical()[:_SAMPLE] if data.facts is not None else np.arange(min(_SAMPLE, len(data)))
    images = preprocess.normalizer()(data.pixels(rows))
    try:
        model.initialize_from(images)
    except Exception as error:  # the network's own code
        raise ModelError(
            f"module.network: {type(model).__name__}.initialize_from failed on {len(images)} training images, float32 "
            f"{list(images.shape)}: {type(error).__name__}: {error}"
        ) from error
