"""Everything a run computes with, made in one straight line: data -> network -> loss -> resolved config -> task ->
optimiser. Nothing is written but the data cache; the files of a run are made in `assemble.py`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.compose.checks import (
    check_conflicts,
    check_labels,
    check_loss,
    check_monitors,
    check_owned,
    check_precision,
    check_targets,
)
from sightline.compose.data import (
    data_record,
    data_source,
    eval_loaders,
    evaluated_splits,
    open_data,
    train_loader,
    with_saved_splits,
)
from sightline.compose.meters import Meters, build_meters
from sightline.compose.module import (
    better_direction,
    build_loss,
    build_network,
    build_task,
    make_freeze,
    make_optimizer,
    make_schedules,
)
from sightline.compose.resolve import Data, Network, Resolved, class_weights, resolve, time_settings
from sightline.compose.weights import resolve_preprocess_keys
from sightline.config.schema import TrainConfig
from sightline.core.errors import ConfigError, ModelError
from sightline.core.types import Task, TrainState
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.engine.runtime import Runtime
from sightline.models.spec import check_training_output

_SAMPLE = 4096


@dataclass
class Parts:
    """What a run computes with, before anything is written: the config, resolved and as it was before; the open data,
    the network, and `train` and `evals`, the loaders."""

    resolved: Resolved
    unresolved: TrainConfig
    data: Data
    network: Network
    loss: Any
    runtime: Runtime
    train: BatchLoader
    evals: dict[str, BatchLoader]
    state: TrainState
    task: Task
    meters: Meters

    @property
    def config(self) -> TrainConfig:
        """The resolved config."""
        return self.resolved.config


def build_parts(
    config: TrainConfig, given: Mapping[str, Any], fresh: bool = True, record: Mapping[str, Any] | None = None
) -> Parts:
    """Everything that computes, from the config and the parts that were passed in; `assemble` says which may be.
    Nothing is written but the data cache. Without `fresh`, a checkpoint will fill the network, and the weights that it
    once began with need not be there any more. `record` is the data.json of a run that is resumed."""
    check_targets(config)
    check_owned(config, given)
    runtime = _runtime(config)
    data = _open(config, given.get("source"), fresh, record)
    train = train_loader(config, data.splits["train"], data.preprocess, runtime)
    network = _network(config, given.get("model"), data, runtime, fresh)
    ours = given.get("task") is None  # another task's outputs may be anything
    meters = build_meters(config, network.spec, data.source.info.classes, runtime.device, probe=ours)
    loss, timed = given.get("loss"), None
    if loss is None:
        weights = class_weights(config.module, data.splits["train"].counts)
        loss = build_loss(replace(config.module, class_weights=weights), runtime.device)
    if ours:
        check_monitors(config, evaluated_splits(data.splits), meters)
        check_training_output(network.model, network.spec)
        check_loss(loss, network.model, network.spec, runtime)
        check_labels(data.splits["train"])
        timed = time_settings(config, network.model, loss, train, runtime)
    resolved = resolve(config, data, network, meters, timed)
    if resolved.chosen and config.trainer.progress:
        print(f"runtime: {resolved.chosen}", file=sys.stderr)
    now = resolved.config
    task = given.get("task")
    if task is None:
        task = build_task(now, loss, network.spec, make_freeze(now, network.model, network.spec.shape))
    better_direction(now, now.module.monitor)  # not known is an error now, before anything is written
    runtime.threads = now.trainer.threads  # type: ignore[assignment]  # a number, or None, once it is resolved
    if now.trainer.channels_last:
        network.model.to(memory_format=torch.channels_last)
    state = _state(now, network, given.get("optimizer"), len(train), meters)
    _set_up(task, state, ours)
    if now.trainer.compile:
        network.model.compile()
    evals = eval_loaders(now, data.splits, data.preprocess, runtime)
    return Parts(resolved, config, data, network, loss, runtime, train, evals, state, task, meters)


def _runtime(config: TrainConfig) -> Runtime:
    settings = config.trainer
    threads = None if settings.threads == "auto" else settings.threads
    runtime = Runtime(settings.device, seed=config.seed, threads=threads, deterministic=settings.deterministic)
    check_precision(config, runtime)
    return runtime


def _open(config: TrainConfig, given: Any, fresh: bool, record: Mapping[str, Any] | None) -> Data:
    """The data, decoded or found in the cache; with the splits and classes of `record`, where there is one."""
    source = data_source(config, given, () if record is None else record["classes"])
    source = source if record is None else with_saved_splits(source, record)
    wanted = resolve_preprocess_keys(config) if fresh else config.data.preprocess
    splits, preprocess = open_data(config, source, wanted)
    check_conflicts(splits)
    return Data(source, splits, preprocess, wanted, data_record(splits, source))


def _network(config: TrainConfig, given: nn.Module | None, data: Data, runtime: Runtime, fresh: bool) -> Network:
    """The network on the run's device."""
    with runtime.active():
        model, spec = build_network(config, given, data.preprocess, data.source.info.outputs, fresh)
        if given is None and config.module.weights is None:
            _initialize(model, data.splits["train"], data.preprocess)
    return Network(model.to(runtime.device), spec)


def _state(config: TrainConfig, network: Network, given: Any, steps_per_epoch: int, meters: Meters) -> TrainState:
    """What training begins from."""
    optimizer = make_optimizer(config, given, network.model, network.spec.shape)
    schedules = make_schedules(config, optimizer, steps_per_epoch, meters.better)
    return TrainState(network.model, optimizer, schedules, config=config.to_dict())


def _set_up(task: Task, state: TrainState, ours: bool) -> None:
    """`ours` says that the task was made from the config."""
    try:
        task.setup(state)
    except ModelError as error:
        if not ours:
            raise
        raise ConfigError(f"module.ema: {error}") from error


def _initialize(model: Any, data: PackedDataset, preprocess: Preprocess) -> None:
    """Shows training images, float32 [N,C,H,W], to a network that begins with what it sees: the same ones in whatever
    order the data is listed."""
    if not hasattr(model, "initialize_from"):
        return
    rows = data.canonical()[:_SAMPLE] if data.stats is not None else np.arange(min(_SAMPLE, len(data)))
    images = preprocess.normalizer()(data.pixels(rows))
    try:
        model.initialize_from(images)
    except Exception as error:  # the network's own code
        raise ModelError(
            f"module.network: {type(model).__name__}.initialize_from failed on {len(images)} training images, float32 "
            f"{list(images.shape)}: {type(error).__name__}: {error}"
        ) from error
