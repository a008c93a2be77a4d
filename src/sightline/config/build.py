"""The composition root: the only module that knows every part below it. Configuration ends here; what it makes takes
plain arguments. One straight line: data -> network -> optimiser -> task -> run directory -> trainer, then train and
export."""

from __future__ import annotations

import operator
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from sightline.config.checks import PARTS, check_given
from sightline.config.data import file_sizes, loader_workers
from sightline.config.meters import Meters
from sightline.config.module import better_direction
from sightline.config.parts import Parts, build_parts
from sightline.config.resuming import check_given_again, check_own, check_same_config, check_same_data
from sightline.config.schema import TrainConfig
from sightline.config.typed import merged
from sightline.config.weights import suggest_finetuning
from sightline.data.packed import PackedDataset
from sightline.data.preprocess import Preprocess
from sightline.engine.callbacks import Callback, EarlyStopping, FirstLoss
from sightline.engine.checkpoint import content_bytes, load_weights, newest_whole
from sightline.engine.checkpointing import Checkpointer, check_room, kept
from sightline.engine.progress import Progress, plain_console
from sightline.engine.runtime import Runtime
from sightline.engine.signals import StopOnSignal, answering, requeue
from sightline.engine.termination import Terminated, signal_of
from sightline.engine.trainer import Trainer, check_callbacks
from sightline.errors import ArtifactError, DivergedError, RunFailedError, SightlineError, first_line
from sightline.models.spec import ModelSpec
from sightline.runs.artifact import add_metrics, export_model, load, recover
from sightline.runs.console import left_out, show_results
from sightline.runs.directory import Run, check_free, check_place
from sightline.runs.environment import environment
from sightline.runs.evaluate import SplitResult, evaluate_split, write_predictions
from sightline.runs.heartbeat import Heartbeat
from sightline.runs.images import IMAGES, changes_told, write_images
from sightline.runs.provenance import provenance as origin
from sightline.runs.recorders import JsonlRecorder, Tee, TensorBoardRecorder, points_at
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
    keeper: Checkpointer
    beat: Heartbeat
    begin: Callable[[], None]
    lock: ExitStack = field(default_factory=ExitStack)

    def fit(self) -> FitResult:
        """Trains to the end, exports the best weights, and measures them as exported. When interrupted, returns after
        the checkpoint."""
        with self.lock:
            return self._fit()

    def _fit(self) -> FitResult:
        trainer = self.trainer
        try:
            self.begin()
            with self.runtime.active():
                result = trainer.fit()
        except DivergedError as error:
            raise type(error)(f"{error} {self._last_good()}") from error
        except SightlineError:
            raise
        except Exception as error:  # the network's, the loss's or a callback's own code
            raise RunFailedError(
                f"{_place(trainer)} failed with {type(error).__name__}: {error}. {self._last_good()}"
            ) from error
        finally:
            if trainer.recorder is not None:
                # a recorder of the user's own may take its time; a full disk the checkpoint has told of
                with answering(self.keeper.requested), suppress(OSError):
                    trainer.recorder.close()
        result.run = self.run.path
        if not result.interrupted:
            with answering(self.keeper.requested):
                self._measure(result)
        return result

    def _measure(self, result: FitResult) -> None:
        """What comes after training: all is saved, so that whatever ends it is made up for by a resume."""
        try:
            with self.beat.measuring(), self.runtime.active():
                result.metrics = {split: found.metrics for split, found in self.finish().items()}
        except KeyboardInterrupt as error:
            result.interrupted, result.signal = True, signal_of(error)
            if isinstance(error, Terminated) and self.keeper.requested is not None:
                self.keeper.requested()
        except (OSError, SafetensorError) as error:
            raise RunFailedError(
                f"the model of '{self.run.path}' could not be exported and measured: {first_line(error)}. It is "
                f"trained to its end; what is left to do is done by: sightline resume {self.run.path}"
            ) from error

    def _last_good(self) -> str:
        """Where to go on from."""
        step = self.keeper.saved_step
        if step is None:
            return "No checkpoint was written yet."
        return f"The last good checkpoint, of step {step}, is '{self.run.last}'."

    def finish(self) -> dict[str, SplitResult]:
        """Exports the best checkpoint and writes what the exported model predicts on every evaluation split."""
        run, model = self.run, self.trainer.state.model
        self._load_best(model)
        began = run.read_environment()
        provenance = origin(run.path.name, self.config.to_dict(), run.read_data()["fingerprint"], began)
        recover(run.exported)  # before the disk is asked for room, which a killed export may have taken
        check_room(run.path, content_bytes(model.state_dict()), "the exported model", self.trainer.state.step)
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

    def _load_best(self, model: nn.Module) -> None:
        """The weights to export. Raises ArtifactError when the file of the best ones is not what was written there."""
        run, state = self.run, self.trainer.state
        if not run.best.exists():
            if state.best is not None:
                print(f"sightline: '{run.best}' is missing; the last weights are exported instead.", file=sys.stderr)
            load_weights(run.last, model)
            return
        advice = "Remove it to export the last weights instead, with: sightline resume"
        try:
            content = load_weights(run.best, model)
        except ArtifactError as error:
            raise ArtifactError(f"{error} {advice}") from error
        check_own(run, run.best, content)
        if content["kind"] not in (None, "best") or content["best"] != state.best:
            raise ArtifactError(
                f"'{run.best}' is not the checkpoint of this run's best epoch: its {self.config.module.monitor} is "
                f"{content['best']}, the best of the run is {state.best}. {advice}"
            )


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
    return _locked(config, given, None)


def resume(
    path: str | Path, changes: Mapping[str, Any] | None = None, *, allow_drift: bool = False, **given: Any
) -> Assembly:
    """The assembly of a run that goes on from its last checkpoint. `changes` is a nested dict of `trainer` keys to
    change, such as the device, or a `data.root` that has moved; parts that were handed over when it began must be
    handed over again. A run that was ended before its first checkpoint begins.

    Raises ArtifactError when no checkpoint is whole, when another process trains the run, and when the data or the rest
    of the config is not what it began with. With `allow_drift` it goes on with these, too, and records what changed in
    `environment.json`, in its checkpoints and with the model."""
    run = Run.open(path)
    run.read_environment()  # it says what must be handed over again, and which checkpoints are its own
    check_given(given)
    check_given_again(run, given)
    config = as_config(merged(read_yaml(run.config), changes or {}))
    return _locked(config, given, run, allow_drift)


def as_config(config: TrainConfig | Mapping[str, Any] | str | Path) -> TrainConfig:
    """A checked config from any of its forms."""
    if isinstance(config, TrainConfig):
        return TrainConfig.from_dict(config.to_dict())
    return TrainConfig.from_dict(config if isinstance(config, Mapping) else read_yaml(config))


def _locked(config: TrainConfig, given: Mapping[str, Any], run: Run | None, allow_drift: bool = False) -> Assembly:
    """An assembly that holds the lock on its run until it has been fitted, or is forgotten."""
    with ExitStack() as lock:
        if run is not None:
            lock.enter_context(run.locked())
        with _at(config.run.dir if run is None else run.path):
            assembly = _assemble(config, given, run, lock, allow_drift)
        assembly.lock = lock.pop_all()
        return assembly


@contextmanager
def _at(place: str | Path) -> Iterator[None]:
    """What the system says against reading and writing there is told with the place."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(f"'{place}' cannot be read or written: {first_line(error)}.") from error


def _assemble(
    config: TrainConfig, given: Mapping[str, Any], run: Run | None, lock: ExitStack, allow_drift: bool
) -> Assembly:
    check_callbacks(given.get("callbacks", ()))
    found = _newest(run) if run is not None else None
    drift = None
    if run is not None and found is not None:
        drift = check_same_config(run, config, found[1]["config"], allow_drift)
    parts = build_parts(config, given, fresh=found is None, record=None if run is None else run.read_data())
    config, state, data = parts.config, parts.state, parts.data
    settings = config.trainer
    early_stopping = _early_stopping(config, parts.meters.better)
    if run is None and not given:
        suggest_finetuning(config, data["train"])
    resumed_at = None
    other_data: dict[str, Any] = {}
    if run is None:
        run = Run.create(
            config.run.dir, config.run.name, parts.source.info.name, lambda made: _begin(made, parts, given), lock
        )
    else:
        other_data = check_same_data(
            run, parts.record, lambda: changes_told(run.path / IMAGES, data, file_sizes(parts.source)), allow_drift
        )
        if found is not None and drift is not None:
            drift.changed |= other_data
            state.meters["train"] = parts.meters.train()
            drift.restore(found[1], state, found[0], config, operator.length_hint(parts.train) or None)
            before = drift.began.trainer
            if before.early_stopping != settings.early_stopping or before.max_epochs < settings.max_epochs:
                state.stopped = False  # what ended it is no longer asked for, or is to be asked again
        resumed_at = (state.step, state.epoch)
    recorder = _recorder(run, data, resumed_at, given)
    keeper = _checkpointer(run, parts, recorder, save_first=drift is not None and bool(drift.changed))
    resumed = run

    def begin() -> None:
        """What a run that goes on says of itself anew; not before it really does."""
        if resumed_at is None:
            return
        with _at(resumed.path):
            resumed.sweep()
            if drift is not None:
                drift.note(resumed, state)
                keeper.about["environment"] = resumed.read_environment()
            if other_data:
                resumed.write_json(resumed.data, parts.record)
                write_images(resumed.path / IMAGES, data, file_sizes(parts.source))
            resumed.write_config(config.to_dict())

    beat = Heartbeat(run.path)
    # the checkpoint of a step or an epoch comes after all that may still change the state
    tried = given.get("task") is None and parts.spec.outputs != "values" and resumed_at is None
    first = [FirstLoss(parts.loss, parts.spec.outputs)] if tried else []
    callbacks = [*first, *early_stopping, *given.get("callbacks", ()), keeper]
    callbacks += [*([Progress()] if settings.progress else ()), beat]
    trainer = _trainer(parts, callbacks, recorder)
    return Assembly(
        config,
        data,
        parts.preprocess,
        parts.spec,
        parts.loss,
        parts.runtime,
        trainer,
        run,
        parts.meters,
        keeper,
        beat,
        begin,
    )


def _recorder(
    run: Run, data: Mapping[str, PackedDataset], resumed_at: tuple[int, int] | None, given: Mapping[str, Any]
) -> Tee:
    """The run's own logs, and the recorder that was passed in. `resumed_at` is the (step, epoch) of a resumed run."""
    recorders: list[Recorder] = [JsonlRecorder(run.log, resumed_at)]
    again = points_at(run.log, resumed_at) if resumed_at else []
    recorders.append(TensorBoardRecorder(run.tensorboard, list(data), resumed_at and resumed_at[0], again))
    if "recorder" in given:
        recorders.append(given["recorder"])
    return Tee(*recorders)


def _checkpointer(run: Run, parts: Parts, recorder: Tee, save_first: bool) -> Checkpointer:
    config, settings = parts.config, parts.config.trainer
    return Checkpointer(
        run.last,
        run.best,
        config.module.monitor,
        better_direction(config, config.module.monitor),
        settings.checkpoint_every,
        every_minutes=settings.checkpoint_minutes,
        keep=settings.keep_checkpoints,
        keep_every=settings.keep_every,
        about=_about(run, parts),
        flush=recorder.flush,
        requested=_requeue(config, run),
        save_first=save_first,
    )


def _trainer(parts: Parts, callbacks: Sequence[Callback], recorder: Tee) -> Trainer:
    settings = parts.config.trainer
    return Trainer(
        parts.task,
        parts.state,
        parts.train,
        parts.evals,
        max_epochs=settings.max_epochs,
        eval_every=settings.eval_every,
        log_every=settings.log_every,
        divergence_threshold=settings.divergence_threshold,
        runtime=parts.runtime,
        callbacks=(*callbacks, StopOnSignal()),  # last: it hands the signals back when all is saved
        recorder=recorder,
        meter=parts.meters.train,
        eval_meter=parts.meters.evaluation,
    )


def _newest(run: Run) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run, and where it is; None for a run that has not written one yet."""
    files = [*kept(run.last), *sorted(run.checkpoints.glob("epoch-*.ckpt"), reverse=True)]
    if not files:
        if run.best.exists() or run.log.exists():
            raise ArtifactError(
                f"'{run.checkpoints}' has no checkpoint to go on from, though '{run.path}' was trained: put "
                f"'last.ckpt' back, or begin a run from its weights: sightline train module.weights={run.best}"
            )
        return None
    path, content = newest_whole(files, lambda line: print(f"sightline: {line}", file=sys.stderr))
    check_own(run, path, content)
    return path, content


def _begin(run: Run, parts: Parts, given: Mapping[str, Any]) -> None:
    """What a run's directory holds before the first step."""
    run.write_json(run.data, parts.record)
    write_images(run.path / IMAGES, parts.data, file_sizes(parts.source))
    handed = sorted(set(PARTS) & set(given))
    made_with = environment() | {"id": secrets.token_hex(8), "given": handed, "runtime": parts.chosen}
    run.write_json(run.environment, made_with)
    run.write_config(parts.config.to_dict())


def _about(run: Run, parts: Parts) -> dict[str, Any]:
    """What every checkpoint says of where it comes from."""
    return {
        "id": run.id,
        "run": run.path.name,
        "seed": parts.config.seed,
        "classes": list(parts.data["train"].classes),
        "preprocess": parts.preprocess.to_dict(),
        "data": parts.record["fingerprint"],
        "environment": run.read_environment(),
    }


def _requeue(config: TrainConfig, run: Run) -> Callable[[], None] | None:
    command = config.run.requeue
    return None if command is None else lambda: requeue(command, run.path)


def _place(trainer: Trainer) -> str:
    state = trainer.state
    return f"epoch {state.epoch}, batch {state.batch} (step {state.step + 1})"


def _early_stopping(config: TrainConfig, known: Mapping[str, str]) -> list[EarlyStopping]:
    settings = config.trainer.early_stopping
    if settings.patience is None:
        return []
    monitor = settings.monitor or config.module.monitor
    tell = plain_console().print if config.trainer.progress else None
    key = "trainer.early_stopping.monitor_mode" if monitor != config.module.monitor else "module.monitor_mode"
    better = better_direction(config, monitor, known, key=key, mode=settings.monitor_mode)
    return [EarlyStopping(monitor, better, settings.patience, settings.min_delta, tell)]
