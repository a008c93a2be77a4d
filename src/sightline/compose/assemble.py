"""Assembles, trains, resumes and exports runs: the implementation of `sightline.fit`, `assemble` and `resume`.

The order is data, network, optimiser, task, run directory, trainer; then training, export and evaluation. The parts
take plain arguments, not config objects."""

import operator
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from sightline.compose.checks import PARTS, check_given
from sightline.compose.console import show_results, unreadable_images
from sightline.compose.data import file_sizes, loader_workers
from sightline.compose.module import better_direction
from sightline.compose.parts import Parts, build_parts
from sightline.compose.resuming import ConfigChanges, check_config, check_data, check_given_again
from sightline.compose.weights import suggest_finetuning
from sightline.config.names import NAMES
from sightline.config.schema import TrainConfig
from sightline.config.typed import merge
from sightline.core.console import is_quiet, plain_console
from sightline.core.errors import (
    ArtifactError,
    DivergedError,
    RunFailedError,
    SightlineError,
    argument_names,
    first_line,
)
from sightline.core.log import logger
from sightline.core.ranks import Ranks
from sightline.core.types import FitResult
from sightline.core.yamlfile import read_yaml
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.engine.callbacks import EarlyStopping, FirstLoss
from sightline.engine.checkpoint.content import content_bytes, load_weights
from sightline.engine.checkpoint.writer import check_room
from sightline.engine.progress import Progress
from sightline.engine.runtime import Runtime
from sightline.engine.signals import requeue
from sightline.engine.trainer import Trainer, check_callbacks
from sightline.inference.artifact import add_metrics, export_model, load, recover_export
from sightline.inference.artifact import make_provenance as origin
from sightline.inference.evaluate import SplitResult, evaluate_split, write_predictions
from sightline.models.spec import ModelSpec
from sightline.runs.directory import Run, check_free, check_place
from sightline.runs.environment import collect_environment
from sightline.runs.images import IMAGES, describe_changes, write_images
from sightline.runs.recorders import JsonlRecorder, TensorBoardRecorder
from sightline.session import CheckpointPolicy, FitOptions, Interface, ResumePolicy, Session, check_own

INTERFACE = Interface(
    name="config",
    again="`sightline resume`",
    advice="Start a new run, or resume this one with --allow-drift, which records the changes.",
    without_checkpoint=(
        "Restore 'last.ckpt', or start a new run from its weights: sightline train "
        "module.weights={run}/checkpoints/best.ckpt"
    ),
    traces=("checkpoints/best.ckpt", "log.jsonl"),
)


@dataclass
class Assembly:
    """A run that is ready to train, as `assemble` and `resume` return it.

    It has the run's parts and the session that locks its directory. `fit` trains, exports and evaluates. `show_results`
    sets whether a table of the results is printed at the end."""

    parts: Parts
    session: Session
    divergence: ConfigChanges | None = None
    show_results: bool = True

    @property
    def config(self) -> TrainConfig:
        """The resolved config."""
        return self.parts.config

    @property
    def data(self) -> dict[str, PackedDataset]:
        """The packed dataset of each split, by name."""
        return self.parts.data.splits

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing that is applied to every image."""
        return self.parts.data.preprocess

    @property
    def spec(self) -> ModelSpec:
        """The JSON-ready description of the network."""
        return self.parts.network.spec

    @property
    def loss(self) -> Any:
        """The loss function."""
        return self.parts.loss

    @property
    def runtime(self) -> Runtime:
        """The device and the torch settings that the run uses."""
        return self.parts.runtime

    @property
    def trainer(self) -> Trainer:
        """The training loop, not started yet."""
        return self.session.trainer

    @property
    def run(self) -> Run:
        """The run directory."""
        return self.session.run

    @argument_names(NAMES)
    def fit(self) -> FitResult:
        """Trains the run, exports its best weights and evaluates the exported model.

        If training is interrupted, returns after writing a checkpoint; see `FitResult.interrupted`. Raises
        DivergedError if the loss diverges and RunFailedError if training, export or custom code fails."""
        with closing(self.session) as session:
            try:
                return session.fit([self._measure], self._begin)
            except DivergedError as error:
                raise type(error)(f"{error} {session.last_good()}") from error
            except SightlineError:
                raise
            except Exception as error:  # custom code of a network, loss or callback may raise anything
                raise RunFailedError(
                    f"{session.place()} failed with {type(error).__name__}: {error}. {session.last_good()}"
                ) from error

    def _begin(self) -> None:
        """Writes the changes of a resumed run into its files. Called right before the first step."""
        run, parts, divergence = self.run, self.parts, self.divergence
        if divergence is None:
            return
        with _errors_with_path(run.path):
            divergence.note(run, parts.state)
            if self.session.checkpointer is not None:
                self.session.checkpointer.about["environment"] = run.read_environment()
            if divergence.data:
                run.write_json(run.data, parts.data.record)
                write_images(run.path / IMAGES, parts.data.splits, file_sizes(parts.data.source))
            run.write_config(parts.config.to_dict())

    def _measure(self, result: FitResult) -> None:
        try:
            result.metrics = {split: evaluated.metrics for split, evaluated in self.finish().items()}
        except (OSError, SafetensorError) as error:
            raise RunFailedError(
                f"The model of '{self.run.path}' could not be exported and evaluated: {first_line(error)}. Training is "
                f"complete. To export and evaluate again: sightline resume {self.run.path}"
            ) from error
        self.session.artifact(self.run.exported)

    @argument_names(NAMES)
    def finish(self) -> dict[str, SplitResult]:
        """Exports the best checkpoint, evaluates the exported model and writes its predictions.

        Every split except train is evaluated, or train if it is the only one. Returns the results by split. Raises
        ArtifactError if `best.ckpt` is not this run's best checkpoint."""
        run, model = self.run, self.trainer.state.model
        self._load_best(model)
        environment = run.read_environment()
        provenance = origin(run.path.name, self.config.to_dict(), run.read_data()["fingerprint"], environment)
        recover_export(run.exported)  # before the free space is checked: a killed export may have left files
        check_room(run.path, content_bytes(model.state_dict()), "the exported model", self.trainer.state.step)
        export_model(run.exported, model, self.spec, self.preprocess, self.data["train"].classes, provenance)
        custom_model = model if "object" in self.spec.network else None
        # allow=None: this process has just built the network from the user's config, so any class is trusted
        predictor = load(run.path, device=str(self.runtime.device), model=custom_model, allow=None)
        splits = [split for split in self.data if split != "train"] or ["train"]
        results = {}
        for split in splits:
            size = self.config.data.eval_batch_size
            workers = loader_workers(self.config.data)
            results[split] = evaluate_split(
                predictor, self.data[split], self.loss, size, workers, self.parts.meters.evaluation
            )
            write_predictions(run.predictions(split), results[split])
        add_metrics(run.exported, {split: result.metrics for split, result in results.items()})
        if self.show_results and self.config.trainer.progress:
            unreadable = unreadable_images(self.data)
            show_results(run, results, unreadable)
            if unreadable and is_quiet():
                logger.warning(
                    f"Images left out because they cannot be read: {len(unreadable):,}. '{run.data}' lists them."
                )
        return results

    def _load_best(self, model: nn.Module) -> None:
        """Loads the weights to export into `model`: those of `best.ckpt`, or the last ones if it does not exist.

        Raises ArtifactError if `best.ckpt` is damaged or is not this run's best checkpoint."""
        run, state = self.run, self.trainer.state
        if not run.best.exists():
            if state.best is not None:
                logger.warning("'%s' is missing; the last weights are exported instead.", run.best)
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
                f"{content['best']}, and the run's best is {state.best}. {advice}"
            )


@argument_names(NAMES)
def fit(config: TrainConfig | Mapping[str, Any] | str | Path, **given: Any) -> FitResult:
    """Trains, exports and evaluates a model, and returns the result.

    `config` is a `TrainConfig`, a nested dict or the path of a YAML file. `given` are parts to use instead of those the
    config describes; see `assemble`. Raises as `assemble` and `Assembly.fit` do."""
    return assemble(config, **given).fit()


@argument_names(NAMES)
def assemble(config: TrainConfig | Mapping[str, Any] | str | Path, **given: Any) -> Assembly:
    """Builds every part of a run, creates its directory, and returns the run ready to train.

    `config` is a `TrainConfig`, a nested dict or the path of a YAML file. A part passed in `given` replaces the part
    that the config describes: `source` (a DataSource), `model` (an nn.Module), `loss` (a callable), `optimizer` (over
    the model's parameters) or `task`. `callbacks` and `recorder` are used in addition to the standard ones.

    Raises ConfigError, DataError, ModelError or MissingExtraError before anything is written, and TypeError for an
    unknown part."""
    config = as_config(config)
    check_given(given)
    check_place(config.run.dir)
    if config.run.name is not None and Ranks.from_environment().is_writer:
        check_free(config.run.dir, config.run.name)
    return _assembled(config, given, Session(None, INTERFACE))


@argument_names(NAMES)
def resume(
    path: str | Path, changes: Mapping[str, Any] | None = None, *, allow_drift: bool = False, **given: Any
) -> Assembly:
    """Returns the run at `path` ready to continue from its last checkpoint, or from the start if it has none.

    `changes` is a nested dict of config keys to change: `trainer` keys such as the device, or `data.root` if the data
    has moved. Parts that were passed in when the run was started must be passed in again as `given`.

    Raises ArtifactError if no checkpoint is valid, if another process trains the run, or if the data or another config
    key has changed. With `allow_drift`, changed data and keys are accepted and recorded in `environment.json`, the
    checkpoints and the exported model."""
    run = Run.open(path)
    run.read_environment()  # fails early: it names the parts to pass in again and identifies the run's checkpoints
    check_given(given)
    check_given_again(run, given)
    config = as_config(merge(read_yaml(run.config), changes or {}))
    return _assembled(config, given, Session(run, INTERFACE, ResumePolicy(allow_drift=allow_drift)))


def as_config(config: TrainConfig | Mapping[str, Any] | str | Path) -> TrainConfig:
    """Returns a validated `TrainConfig` from a `TrainConfig`, a nested dict or the path of a YAML file.

    Raises ConfigError for an unknown key or an invalid value."""
    if isinstance(config, TrainConfig):
        return TrainConfig.from_dict(config.to_dict())
    return TrainConfig.from_dict(config if isinstance(config, Mapping) else read_yaml(config))


@contextmanager
def _errors_with_path(path: str | Path) -> Iterator[None]:
    """Turns an OSError of the block into a RunFailedError that names `path`."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(f"'{path}' cannot be read or written: {first_line(error)}.") from error


def _assembled(config: TrainConfig, given: Mapping[str, Any], session: Session) -> Assembly:
    """Builds a new or a resumed run in an entered session, which stays open until `Assembly.fit` closes it.

    No file of the run is written before every part has been built."""
    with ExitStack() as stack:
        with _errors_with_path(config.run.dir if session.new else session.run.path):
            check_callbacks(given.get("callbacks", ()))
            stack.enter_context(session)
            divergence = None if session.new else check_config(session, config)
            record = None if session.new else session.run.read_data()
            parts = build_parts(config, given, fresh=session.saved is None, record=record)
            early_stopping = _early_stopping(parts.config, parts.meters.better)
            _create_or_restore(session, parts, given, divergence)
            training = _training(session, parts, given, early_stopping)
            session.prepare(training, _checkpoints(session, parts, divergence))
        stack.pop_all()
        return Assembly(parts, session, divergence)


def _create_or_restore(
    session: Session, parts: Parts, given: Mapping[str, Any], divergence: ConfigChanges | None
) -> None:
    """Creates the directory of a new run, or checks the data of a resumed run and restores its state."""
    config, state = parts.config, parts.state
    if divergence is None:
        if not given:
            suggest_finetuning(config, parts.data.splits["train"])
        session.create(
            config.run.dir, config.run.name, parts.data.source.info.name, lambda run: _write_files(run, parts, given)
        )
        return
    images = session.run.path / IMAGES
    data = parts.data
    divergence.data = check_data(
        session, data.record, lambda: describe_changes(images, data.splits, file_sizes(data.source))
    )
    if divergence.began is None:
        return
    state.meters["train"] = parts.meters.train()
    divergence.restore(session, state, config, operator.length_hint(parts.train) or None)
    before, now = divergence.began.trainer, config.trainer
    if before.early_stopping != now.early_stopping or before.max_epochs < now.max_epochs:
        state.stopped = False  # the condition that ended the run has changed


def _training(
    session: Session, parts: Parts, given: Mapping[str, Any], early_stopping: list[EarlyStopping]
) -> FitOptions:
    settings = parts.config.trainer
    # the first loss can be judged only for the config's task, on classes, in a new run
    classifies = given.get("task") is None and parts.network.spec.outputs != "values"
    first = [FirstLoss(parts.loss, parts.network.spec.outputs)] if classifies and session.saved is None else []
    return FitOptions(
        parts.task,
        parts.state,
        parts.train,
        parts.evals,
        max_epochs=settings.max_epochs,
        eval_every=settings.eval_every,
        log_every=settings.log_every,
        divergence_threshold=settings.divergence_threshold,
        runtime=parts.runtime,
        meter=parts.meters.train,
        eval_meter=parts.meters.evaluation,
        callbacks=[*first, *early_stopping, *given.get("callbacks", ())],
        observers=[Progress()] if settings.progress else [],
        recorders=[
            JsonlRecorder(),
            TensorBoardRecorder(list(parts.data.splits)),
            *([given["recorder"]] if "recorder" in given else []),
        ],
    )


def _checkpoints(session: Session, parts: Parts, divergence: ConfigChanges | None) -> CheckpointPolicy:
    config, settings, command = parts.config, parts.config.trainer, parts.config.run.requeue
    run_path = session.run.path
    changed = divergence is not None and divergence.began is not None and bool(divergence.changed | divergence.data)
    return CheckpointPolicy(
        config.module.monitor,
        better_direction(config, config.module.monitor),
        every_steps=settings.checkpoint_every,
        every_minutes=settings.checkpoint_minutes,
        keep=settings.keep_checkpoints,
        keep_every=settings.keep_every,
        about=_about(session.run, parts),
        requested=None if command is None else lambda: requeue(command, run_path),
        save_first=changed,
    )


def _write_files(run: Run, parts: Parts, given: Mapping[str, Any]) -> None:
    """Writes the files that a run's directory contains before the first step."""
    run.write_json(run.data, parts.data.record)
    write_images(run.path / IMAGES, parts.data.splits, file_sizes(parts.data.source))
    passed = sorted(set(PARTS) & set(given))
    environment = collect_environment() | {"id": secrets.token_hex(8), "given": passed}
    run.write_json(run.environment, environment | {"runtime": parts.resolved.chosen})
    run.write_config(parts.config.to_dict(), unresolved=parts.unresolved.to_dict())


def _about(run: Run, parts: Parts) -> dict[str, Any]:
    """Returns the metadata that every checkpoint stores about its run."""
    return {
        "seed": parts.config.seed,
        "classes": list(parts.data.splits["train"].classes),
        "preprocess": parts.data.preprocess.to_dict(),
        "data": parts.data.record["fingerprint"],
        "environment": run.read_environment(),
    }


def _early_stopping(config: TrainConfig, known: Mapping[str, str]) -> list[EarlyStopping]:
    settings = config.trainer.early_stopping
    if settings.patience is None:
        return []
    monitor = settings.monitor or config.module.monitor
    report = plain_console().print if config.trainer.progress else None
    key = "trainer.early_stopping.monitor_mode" if monitor != config.module.monitor else "module.monitor_mode"
    better = better_direction(config, monitor, known, key=key, mode=settings.monitor_mode)
    return [EarlyStopping(monitor, better, settings.patience, settings.min_delta, report)]
