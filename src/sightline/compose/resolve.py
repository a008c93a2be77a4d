"""Resolves the `auto` values of a config from the data, the network and a few timed steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sightline.compose.meters import Meters
from sightline.config.schema import ModuleConfig, PreprocessConfig, TrainConfig
from sightline.core.errors import ConfigError, RunFailedError, SightlineError, join_names
from sightline.core.files import expand_user
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.data.records import DataSource
from sightline.engine.runtime import Runtime
from sightline.engine.tools.autotune import TuneResult, tune_settings
from sightline.metrics.direction import metric_mode
from sightline.models.probe import batch_that_fits
from sightline.models.spec import ModelSpec


@dataclass(frozen=True)
class Data:
    """The opened data of a run.

    `splits` are the packed splits by name, `preprocess` is the preprocessing of every image, `preprocess_config` the
    `data.preprocess` keys that it was built from, and `record` the content of data.json."""

    source: DataSource
    splits: dict[str, PackedDataset]
    preprocess: Preprocess
    preprocess_config: PreprocessConfig
    record: dict[str, Any]


@dataclass(frozen=True)
class Network:
    """The network of a run, on the run's device, and its description."""

    model: nn.Module
    spec: ModelSpec


@dataclass(frozen=True)
class Resolved:
    """A config in which `resolve` has filled in the open keys.

    The run is built from it, config.yaml stores it, and a resumed run is compared with it. `chosen` describes the
    settings that were chosen by timing them; it is empty if none was."""

    config: TrainConfig
    chosen: str = ""


def resolve(
    config: TrainConfig, data: Data, network: Network, meters: Meters, timed: TuneResult | None = None
) -> Resolved:
    """Returns the config with the open keys filled in.

    These are `data.root` as an absolute path, `data.preprocess` as pretrained weights expect it,
    `data.eval_batch_size`, `module.class_weights`, `module.monitor_mode`, and with `timed`, the result of
    `time_settings`, also `trainer.channels_last`, `threads` and `compile`. Raises ConfigError if the number of class
    weights is not the number of classes."""
    root, batch_size = config.data.root, config.data.eval_batch_size
    filled = replace(
        config.data,
        # absolute, because a run may be resumed or evaluated from another directory
        root=None if root is None else str(expand_user(root).absolute()),
        preprocess=data.preprocess_config,
        eval_batch_size=batch_that_fits(network.model, network.spec.shape) if batch_size == "auto" else batch_size,
    )
    module = replace(
        config.module,
        class_weights=class_weights(config.module, data.splits["train"].counts),
        monitor_mode=_monitor_mode(config.module, meters),
    )
    trainer = config.trainer
    if timed is not None:
        chosen = timed.setting
        trainer = replace(trainer, channels_last=chosen.channels_last, threads=chosen.threads, compile=chosen.compile)
    return Resolved(
        replace(config, data=filled, module=module, trainer=trainer), "" if timed is None else timed.summary
    )


def class_weights(module: ModuleConfig, counts: Mapping[str, int]) -> list[float] | None:
    """Returns `module.class_weights` as numbers, one per class, or None if it is not set.

    `counts` are the training images per class. `auto` is scikit-learn's "balanced": images / (classes * images of the
    class), with at least one image per class assumed. Raises ConfigError for a list of the wrong length."""
    weights = module.class_weights
    if weights is None:
        return None
    if isinstance(weights, str):
        total = sum(counts.values())
        return [total / (len(counts) * max(count, 1)) for count in counts.values()]
    if len(weights) != len(counts):
        raise ConfigError(
            f"module.class_weights: found {len(weights)} numbers for {len(counts)} classes. Set one per class, in this "
            f"order: {join_names(counts)}."
        )
    return weights


def time_settings(
    config: TrainConfig, model: nn.Module, loss: Any, train: BatchLoader, runtime: Runtime
) -> TuneResult | None:
    """Times a few steps to choose `channels_last`, `threads` and `compile` where they are `auto`.

    Returns None if none of them is `auto`. Raises RunFailedError if a step fails."""
    trainer = config.trainer
    if "auto" not in (trainer.channels_last, trainer.compile, trainer.threads):
        return None
    try:
        with runtime.active():
            return tune_settings(
                model,
                loss,
                train.look(range(min(train.batch_size // trainer.accumulate_grad_batches, len(train.dataset)))),
                precision=trainer.precision,
                channels_last=trainer.channels_last,
                threads=trainer.threads,
                compile=trainer.compile,
                steps=trainer.max_epochs * len(train) * trainer.accumulate_grad_batches,
            )
    except SightlineError:
        raise
    except Exception as error:  # custom code of the network or the loss may raise anything
        raise RunFailedError(f"Timing the trainer settings failed with {type(error).__name__}: {error}") from error


def _monitor_mode(module: ModuleConfig, meters: Meters) -> Any:
    """Returns `module.monitor_mode`, or the metric object's own direction where `auto` would not find it by name.

    Later readers of the run's config do not have the metric object."""
    mode = metric_mode(module.monitor, meters.better)
    if module.monitor_mode != "auto" or mode is None or mode == metric_mode(module.monitor):
        return module.monitor_mode
    return mode
