"""The composition root: the only module that knows every part below it. Configuration ends here; what it makes takes
plain arguments. One straight line: data -> network -> optimiser -> task -> run directory -> trainer, then train and
export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.config.checks import (
    PARTS,
    check_given,
    check_given_again,
    check_same_config,
    check_same_data,
)
from sightline.config.data import loader_workers
from sightline.config.meters import Meters
from sightline.config.module import better_direction
from sightline.config.parts import build_parts
from sightline.config.schema import TrainConfig
from sightline.data.packed import PackedDataset
from sightline.data.preprocess import Preprocess
from sightline.engine.callbacks import Checkpointer, EarlyStopping, StopOnSignal
from sightline.engine.checkpoint import load_checkpoint, load_weights
from sightline.engine.progress import Progress, plain_console
from sightline.engine.runtime import Runtime
from sightline.engine.trainer import Trainer, check_callbacks
from sightline.errors import ArtifactError, RunFailedError, SightlineError
from sightline.files import locked
from sightline.models.spec import ModelSpec
from sightline.runs.artifact import add_metrics, export_model, load
from sightline.runs.console import left_out, show_results
from sightline.runs.directory import Run, check_free, check_place
from sightline.runs.environment import environment
from sightline.runs.evaluate import SplitResult, evaluate_split, write_predictions
from sightline.runs.recorders import JsonlRecorder, Tee, TensorBoardRecorder
from sightline.types import FitResult, Recorder
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
    meters: Meters

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
            results[split] = evaluate_split(
                predictor, self.data[split], self.loss, size, workers, self.meters.evaluation
            )
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


def _assemble(config: TrainConfig, given: Mapping[str, Any], run: Run | None) -> Assembly:
    check_callbacks(given.get("callbacks", ()))
    parts = build_parts(config, given, fresh=run is None)
    config, state, data = parts.config, parts.state, parts.data
    module, settings = config.module, config.trainer
    if run is None:
        run = Run.create(config.run.dir, config.run.name, parts.source.info.name)
        run.write_json(run.data, parts.record)
        run.write_json(
            run.environment, environment() | {"given": sorted(set(PARTS) & set(given)), "runtime": parts.chosen}
        )
        resumed_at = None
    else:
        check_same_data(run, parts.record)
        before = check_same_config(run, config).trainer
        state.meters["train"] = parts.meters.train()
        load_checkpoint(run.last, state)
        if before.early_stopping != settings.early_stopping or before.max_epochs < settings.max_epochs:
            state.stopped = False  # what ended it is no longer asked for, or is to be asked again
        resumed_at = (state.step, state.epoch)
    run.write_config(config.to_dict())
    better = better_direction(config, module.monitor)
    keeper = Checkpointer(run.last, run.best, module.monitor, better, settings.checkpoint_every)
    callbacks = [StopOnSignal(), keeper, *_early_stopping(config, parts.meters.better), *given.get("callbacks", ())]
    recorders: list[Recorder] = [JsonlRecorder(run.log, resumed_at)]
    recorders.append(TensorBoardRecorder(run.tensorboard, list(data), resumed_at and resumed_at[0]))
    if "recorder" in given:
        recorders.append(given["recorder"])
    trainer = Trainer(
        parts.task,
        state,
        parts.train,
        parts.evals,
        max_epochs=settings.max_epochs,
        eval_every=settings.eval_every,
        log_every=settings.log_every,
        runtime=parts.runtime,
        callbacks=(*callbacks, *([Progress()] if settings.progress else ())),
        recorder=Tee(*recorders),
        meter=parts.meters.train,
        eval_meter=parts.meters.evaluation,
    )
    return Assembly(config, data, parts.preprocess, parts.spec, parts.loss, parts.runtime, trainer, run, parts.meters)


def _early_stopping(config: TrainConfig, known: Mapping[str, str]) -> list[EarlyStopping]:
    settings = config.trainer.early_stopping
    if settings.patience is None:
        return []
    monitor = settings.monitor or config.module.monitor
    tell = plain_console().print if config.trainer.progress else None
    better = better_direction(config, monitor, known)
    return [EarlyStopping(monitor, better, settings.patience, settings.min_delta, tell)]
