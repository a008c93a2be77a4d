"""Builds the parts that a run computes with, in order: data, network, loss, resolved config, task, optimiser.

Only the data cache is written. `assemble.py` writes the files of a run."""

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
from sightline.core.log import logger
from sightline.core.types import Task, TrainState
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.engine.runtime import Runtime
from sightline.models.spec import check_training_output

_SAMPLE = 4096  # training images passed to `initialize_from`


@dataclass
class Parts:
    """The parts that a run computes with.

    `resolved` and `unresolved` are the config with and without the values that `resolve` fills in. `train` and `evals`
    are the loaders of the training split and of the splits that are evaluated during training."""

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
    """Builds all parts of a run from the config and the passed-in parts `given`, which are listed in `assemble`.

    Without `fresh`, the initial weights are not loaded and their file need not exist, because a checkpoint will replace
    them. `record` is the content of data.json of a resumed run. Only the data cache is written. Raises ConfigError,
    DataError, ModelError or MissingExtraError for parts that cannot be built or do not fit together."""
    check_targets(config)
    check_owned(config, given)
    runtime = _runtime(config)
    data = _open(config, given.get("source"), fresh, record)
    train = train_loader(config, data.splits["train"], data.preprocess, runtime)
    network = _network(config, given.get("model"), data, runtime, fresh)
    default_task = given.get("task") is None  # the outputs and metrics of a custom task are unknown
    meters = build_meters(config, network.spec, data.source.info.classes, runtime.device, probe=default_task)
    loss, timed = given.get("loss"), None
    if loss is None:
        weights = class_weights(config.module, data.splits["train"].counts)
        loss = build_loss(replace(config.module, class_weights=weights), runtime.device)
    if default_task:
        check_monitors(config, evaluated_splits(data.splits), meters)
        check_training_output(network.model, network.spec)
        check_loss(loss, network.model, network.spec, runtime)
        check_labels(data.splits["train"])
        timed = time_settings(config, network.model, loss, train, runtime)
    resolved = resolve(config, data, network, meters, timed)
    if resolved.chosen:
        logger.info("runtime: %s", resolved.chosen)
    final = resolved.config
    task = given.get("task")
    if task is None:
        task = build_task(final, loss, network.spec, make_freeze(final, network.model, network.spec.shape))
    better_direction(final, final.module.monitor)  # raises here, before any file of the run is written
    runtime.threads = final.trainer.threads  # type: ignore[assignment]  # an int or None in a resolved config
    if final.trainer.channels_last:
        network.model.to(memory_format=torch.channels_last)
    state = _state(final, network, given.get("optimizer"), len(train), meters)
    _set_up(task, state, default_task)
    if final.trainer.compile:
        network.model.compile()
    evals = eval_loaders(final, data.splits, data.preprocess, runtime)
    return Parts(resolved, config, data, network, loss, runtime, train, evals, state, task, meters)


def _runtime(config: TrainConfig) -> Runtime:
    settings = config.trainer
    threads = None if settings.threads == "auto" else settings.threads
    runtime = Runtime(settings.device, seed=config.seed, threads=threads, deterministic=settings.deterministic)
    check_precision(config, runtime)
    return runtime


def _open(config: TrainConfig, given: Any, fresh: bool, record: Mapping[str, Any] | None) -> Data:
    """Opens the data, decoded or from the cache. `record` sets the classes and how val and test are held out."""
    source = data_source(config, given, () if record is None else record["classes"])
    source = source if record is None else with_saved_splits(source, record)
    wanted = resolve_preprocess_keys(config) if fresh else config.data.preprocess
    splits, preprocess = open_data(config, source, wanted)
    check_conflicts(splits)
    return Data(source, splits, preprocess, wanted, data_record(splits, source))


def _network(config: TrainConfig, given: nn.Module | None, data: Data, runtime: Runtime, fresh: bool) -> Network:
    """Builds the network, or takes `given`, and moves it to the run's device."""
    with runtime.active():
        model, spec = build_network(config, given, data.preprocess, data.source.info.outputs, fresh)
        if given is None and config.module.weights is None:
            _initialize(model, data.splits["train"], data.preprocess)
    return Network(model.to(runtime.device), spec)


def _state(config: TrainConfig, network: Network, given: Any, steps_per_epoch: int, meters: Meters) -> TrainState:
    """Builds the optimiser and schedules, and returns the initial training state."""
    optimizer = make_optimizer(config, given, network.model, network.spec.shape)
    schedules = make_schedules(config, optimizer, steps_per_epoch, meters.better)
    return TrainState(network.model, optimizer, schedules, config=config.to_dict())


def _set_up(task: Task, state: TrainState, default_task: bool) -> None:
    """Sets up the task. An error of the config's task, `default_task`, is about its EMA."""
    try:
        task.setup(state)
    except ModelError as error:
        if not default_task:
            raise
        raise ConfigError(f"module.ema: {error}") from error


def _initialize(model: Any, data: PackedDataset, preprocess: Preprocess) -> None:
    """Calls `initialize_from` of a network that has it with training images, float32 [N,C,H,W].

    The images do not depend on the order in which the data is listed. Raises ModelError if the call fails."""
    if not hasattr(model, "initialize_from"):
        return
    rows = data.canonical()[:_SAMPLE] if data.stats is not None else np.arange(min(_SAMPLE, len(data)))
    images = preprocess.normalizer()(data.pixels(rows))
    try:
        model.initialize_from(images)
    except Exception as error:  # custom code of a network may raise anything
        raise ModelError(
            f"module.network: {type(model).__name__}.initialize_from failed on {len(images)} training images, float32 "
            f"{list(images.shape)}: {type(error).__name__}: {error}"
        ) from error
