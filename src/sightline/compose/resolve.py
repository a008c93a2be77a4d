"""What a config leaves open, decided once: from the data, the network, and a few timed steps."""

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
    """The open data of a run: the packed `splits` by name, how each image is preprocessed, the keys of
    `data.preprocess` that this was made from (`preprocess_config`), and what data.json will say (`record`)."""

    source: DataSource
    splits: dict[str, PackedDataset]
    preprocess: Preprocess
    preprocess_config: PreprocessConfig
    record: dict[str, Any]


@dataclass(frozen=True)
class Network:
    """The network of a run, on its device, and the same as data."""

    model: nn.Module
    spec: ModelSpec


@dataclass(frozen=True)
class Resolved:
    """A config with the keys filled in that `resolve` names. Nothing changes it later: the run is made from it,
    config.yaml holds it, and a resumed run is compared with it. `chosen` says which settings were chosen by timing
    them; empty where none was."""

    config: TrainConfig
    chosen: str = ""


def resolve(
    config: TrainConfig, data: Data, network: Network, meters: Meters, timed: TuneResult | None = None
) -> Resolved:
    """The config with these keys filled in: `data.root` as an absolute path, `data.preprocess` as pretrained weights
    expect it, `data.eval_batch_size`, `module.class_weights` and `module.monitor_mode`; and, as `time_settings` chose
    them, `trainer.channels_last`, `threads` and `compile`.

    Raises ConfigError for class weights that are not one for each class."""
    root, batch_size = config.data.root, config.data.eval_batch_size
    filled = replace(
        config.data,
        # a run may be resumed or measured from another directory, where a relative path may be other data
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
    """`module.class_weights` as numbers: with `auto`, for each class, images / (classes * images of it) in the training
    split, so that each class counts the same in all (scikit-learn's "balanced"); a class without images counts as one
    with a single image. Raises ConfigError for a list of another length than the classes."""
    weights = module.class_weights
    if weights is None:
        return None
    if isinstance(weights, str):
        total = sum(counts.values())
        return [total / (len(counts) * max(count, 1)) for count in counts.values()]
    if len(weights) != len(counts):
        raise ConfigError(
            f"module.class_weights: {len(weights)} numbers for {len(counts)} classes; give one for each, in this "
            f"order: {join_names(counts)}."
        )
    return weights


def time_settings(
    config: TrainConfig, model: nn.Module, loss: Any, train: BatchLoader, runtime: Runtime
) -> TuneResult | None:
    """What a few timed steps choose for those of the trainer's speed settings that are `auto`; None when there is
    nothing to choose. Raises RunFailedError where a step fails."""
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
    except Exception as error:  # the network's or the loss's own code
        raise RunFailedError(f"timing the settings failed with {type(error).__name__}: {error}") from error


def _monitor_mode(module: ModuleConfig, meters: Meters) -> Any:
    """The direction of the monitored metric where the metric itself knows it and its name does not say it: those who
    read the run's config later have no metric to ask."""
    found = metric_mode(module.monitor, meters.better)
    if module.monitor_mode != "auto" or found is None or found == metric_mode(module.monitor):
        return module.monitor_mode
    return found
