"""The composition root: the only module that knows every part below it. Configuration ends here; what it makes takes
plain arguments. One straight line: data -> network -> optimiser -> task -> run directory -> trainer, then train and
export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline import locate
from sightline.config.checks import (
    PARTS,
    check_given,
    check_given_again,
    check_loss,
    check_monitors,
    check_same_config,
    check_same_data,
    check_targets,
)
from sightline.config.data import build_loaders, data_record, data_source, loader_workers, open_data
from sightline.config.schema import TrainConfig
from sightline.data.packed import PackedDataset
from sightline.data.preprocess import Preprocess
from sightline.engine.callbacks import Checkpointer, StopOnSignal
from sightline.engine.checkpoint import load_checkpoint, load_weights
from sightline.engine.progress import Progress
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer, check_callbacks
from sightline.errors import ArtifactError, ConfigError, RunFailedError, SightlineError
from sightline.files import expanded, locked
from sightline.metrics import Meter, better_when
from sightline.models.spec import ModelSpec, build_model, describe_model
from sightline.optim import build_optimizer, build_schedule
from sightline.runs.artifact import add_metrics, export_model, load
from sightline.runs.console import left_out, show_results
from sightline.runs.directory import Run, check_free, check_place
from sightline.runs.environment import environment
from sightline.runs.evaluate import SplitResult, evaluate_split, write_predictions
from sightline.runs.recorders import JsonlRecorder, Tee, TensorBoardRecorder
from sightline.types import FitResult, Recorder, Schedule, TrainState
from sightline.yamlfile import read_yaml


@dataclass
class Assembly:
    """All parts of a run, ready to train. Made by `assemble`; `fit` trains, exports and measures."""

    config: TrainConfig
    data: dict[str, PackedDataset]
    preprocess: Preprocess
    spec: ModelSpec
    loss: Any
    runtime: Runtime
    trainer: Trainer
    run: Run

    def fit(self) -> FitResult:
        """Trains to the end, exports the best weights, and measures them as exported. When interrupted, returns after
        the checkpoint."""
        with locked(self.run.path) as mine:
            if not mine:
                raise ArtifactError(f"'{self.run.path}' is being trained by another process.")
            return self._fit()

    def _fit(self) -> FitResult:
        trainer = self.trainer
        try:
            with self.runtime.active():
                result = trainer.fit()
        except SightlineError:
            raise
        except Exception as error:  # the network's, the loss's or a callback's own code
            state = trainer.state
            raise RunFailedError(
                f"epoch {state.epoch}, batch {state.batch} (step {state.step + 1}) failed with {type(error).__name__}: "
                f"{error}. The last checkpoint is kept in '{self.run.checkpoints}'."
            ) from error
        finally:
            if trainer.recorder is not None:
                trainer.recorder.close()
        result.run = self.run.path
        if not result.interrupted:
            try:
                with self.runtime.active():
                    result.metrics = {split: found.metrics for split, found in self.finish().items()}
            except KeyboardInterrupt:
                result.interrupted = True
        return result

    def finish(self) -> dict[str, SplitResult]:
        """Exports the best checkpoint and writes what the exported model predicts on every evaluation split."""
        run, model = self.run, self.trainer.state.model
        load_weights(run.best if run.best.exists() else run.last, model)
        provenance = {"run": run.path.name, "config": self.config.to_dict(), "data": run.read_data()["fingerprint"]}
        export_model(run.exported, model, self.spec, self.preprocess, self.data["train"].classes, provenance)
        given = model if "object" in self.spec.network else None
        # the config is the user's own, so its network may be any class; a stored one is limited, see `load`
        predictor = load(run.path, device=str(self.runtime.device), model=given, allow=None)
        splits = [split for split in self.data if split != "train"] or ["train"]
        results = {}
        for split in splits:
            size = self.config.data.eval_batch_size
            workers = loader_workers(self.config.data)
            results[split] = evaluate_split(predictor, self.data[split], self.loss, size, workers)
            write_predictions(run.predictions(split), results[split])
        add_metrics(run.exported, {split: found.metrics for split, found in results.items()})
        if self.config.trainer.progress:
            show_results(run, results, left_out(self.data))
        return results


def fit(config: TrainConfig | Mapping[str, Any] | str | Path, **given: Any) -> FitResult:
    """Trains what the config describes: a `TrainConfig`, a dict, or a YAML file. See `assemble` for `given`."""
    return assemble(config, **given).fit()


def assemble(config: TrainConfig | Mapping[str, Any] | str | Path, **given: Any) -> Assembly:
    """Makes every part of a run and its directory. A part that is given is used, the others are built from their node
    of the config: `source` (a DataSource), `model` (an nn.Module), `loss` (a callable), `optimizer` (over the model's
    parameters), `task`, `callbacks` (added to the stock ones), `recorder` (added to the run's own logs).

    Raises ConfigError, DataError, ModelError or MissingExtraError before anything is written."""
    config = as_config(config)
    check_given(given)
    check_place(config.run.dir)
    if config.run.name is not None:
        check_free(config.run.dir, config.run.name)
    return _assemble(config, given, None)


def _with_absolute_root(config: TrainConfig) -> TrainConfig:
    """A run may be resumed or measured from another directory, where a relative path may be other data."""
    root = config.data.root
    if root is None:
        return config
    return replace(config, data=replace(config.data, root=str(expanded(root).absolute())))


def resume(path: str | Path, changes: Mapping[str, Any] | None = None, **given: Any) -> Assembly:
    """The assembly of a run that goes on from its last checkpoint. `changes` is a nested dict of `trainer` keys to
    change, such as the device, or a `data.root` that has moved; parts that were handed over when it began must be
    handed over again. Raises ArtifactError when there is no checkpoint, or the data or the rest of the config is not
    what the run began with."""
    run = Run.open(path)
    if not run.last.is_file():
        raise ArtifactError(f"'{run.path}' has no checkpoint to resume from; start again with: sightline train")
    check_given(given)
    check_given_again(run, given)
    return _assemble(as_config(merged(read_yaml(run.config), changes or {})), given, run)


def as_config(config: TrainConfig | Mapping[str, Any] | str | Path) -> TrainConfig:
    """A checked config from any of its forms."""
    if isinstance(config, TrainConfig):
        return TrainConfig.from_dict(config.to_dict())
    return TrainConfig.from_dict(config if isinstance(config, Mapping) else read_yaml(config))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, group by group."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def build_loss(config: TrainConfig, device: torch.device, allow: Sequence[str] | None = None) -> Any:
    """The loss the config describes, on the device. `allow` limits what it may name, see `locate`."""
    loss = locate.instantiate(config.module.loss, key="module.loss", allow=allow)
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def _assemble(config: TrainConfig, given: Mapping[str, Any], run: Run | None) -> Assembly:
    module, settings = config.module, config.trainer
    check_targets(config)
    runtime = Runtime(settings.device, seed=config.seed, threads=settings.threads, deterministic=settings.deterministic)
    check_callbacks(given.get("callbacks", ()))
    source = data_source(config, given.get("source"))
    config = _with_absolute_root(config)
    data, preprocess = open_data(config, source)
    record = data_record(data, source)
    if run is not None:
        check_same_data(run, record)
    train, evals = build_loaders(config, data, preprocess, runtime)
    with runtime.active():
        model, spec = _model(config, given.get("model"), preprocess, len(source.info.classes))
    model.to(runtime.device)
    loss = given.get("loss") or build_loss(config, runtime.device)
    optimizer = given.get("optimizer")
    if optimizer is None:
        target, arguments = _by_name(module.optimizer, "module.optimizer")
        optimizer = build_optimizer(target, arguments, model, "module.optimizer")
    elif not {id(p) for group in optimizer.param_groups for p in group["params"]} <= set(map(id, model.parameters())):
        raise TypeError("the given optimizer has parameters that are not the model's; give its model too.")
    state = TrainState(model, optimizer, _schedules(config, optimizer, len(train)), config=config.to_dict())
    task = given.get("task")
    if task is None:
        check_monitors(config, evals)
        check_loss(loss, model, spec, runtime)
        task = SupervisedTask(loss, spec.outputs)
    if run is None:
        run = Run.create(config.run.dir, config.run.name, source.info.name)
        run.write_json(run.data, record)
        run.write_json(run.environment, environment() | {"given": sorted(set(PARTS) & set(given))})
        resumed_at = None
    else:
        check_same_config(run, config)
        state.meters["train"] = Meter()
        load_checkpoint(run.last, state)
        resumed_at = (state.step, state.epoch)
    run.write_config(config.to_dict())
    better = _better(config, module.monitor)
    keeper = Checkpointer(run.last, run.best, module.monitor, better, settings.checkpoint_every)
    recorders: list[Recorder] = [JsonlRecorder(run.log, resumed_at)]
    recorders.append(TensorBoardRecorder(run.tensorboard, list(data), resumed_at and resumed_at[0]))
    if "recorder" in given:
        recorders.append(given["recorder"])
    trainer = Trainer(
        task,
        state,
        train,
        evals,
        max_epochs=settings.max_epochs,
        eval_every=settings.eval_every,
        log_every=settings.log_every,
        runtime=runtime,
        callbacks=(StopOnSignal(), keeper, *given.get("callbacks", ()), *([Progress()] if settings.progress else ())),
        recorder=Tee(*recorders),
    )
    return Assembly(config, data, preprocess, spec, loss, runtime, trainer, run)


def _by_name(node: Mapping[str, Any], key: str) -> tuple[Any, dict[str, Any]]:
    """(callable, arguments) of a node whose first argument is ours to give."""
    target, args, arguments = locate.unfold(node, key=key)
    if args:
        raise ConfigError(f"{key}._args_: its first argument is given to it, so give the others by name; found {args}.")
    return target, arguments


def _model(
    config: TrainConfig, given: nn.Module | None, preprocess: Preprocess, num_classes: int
) -> tuple[nn.Module, ModelSpec]:
    module = config.module
    if given is not None:
        network = {"object": f"{type(given).__module__}.{type(given).__qualname__}"}
        return given, describe_model(given, network, preprocess.shape, num_classes, module.outputs, "model")
    torch.manual_seed(config.seed)
    return build_model(module.network, preprocess.shape, num_classes, outputs=module.outputs)


def _schedules(config: TrainConfig, optimizer: Any, steps_per_epoch: int) -> list[Schedule]:
    nodes = config.module.lr_scheduler or []
    schedules = []
    for position, node in enumerate(nodes if isinstance(nodes, list) else [nodes]):
        key = f"module.lr_scheduler[{position}]" if isinstance(nodes, list) else "module.lr_scheduler"
        target, arguments = _by_name(node, key)
        given = arguments.pop("monitor", None)
        monitor = given or config.module.monitor
        schedules.append(
            build_schedule(
                target,
                arguments,
                optimizer,
                steps_per_epoch=steps_per_epoch,
                epochs=config.trainer.max_epochs,
                monitor=monitor,
                better=_better(config, monitor),
                key=key,
            )
        )
        if given is not None and schedules[-1].monitor is None:
            raise ConfigError(f"{key}.monitor: only ReduceLROnPlateau watches a metric; this schedule would ignore it.")
    return schedules


def _better(config: TrainConfig, monitor: str) -> str:
    given = config.module.monitor_mode
    return given if given != "auto" and monitor == config.module.monitor else better_when(monitor)
