"""The composition root: the only module that knows every part below it. Configuration ends here; what it makes takes
plain arguments. One straight line: data -> network -> optimiser -> task -> run directory -> trainer, then train and
export."""

import operator
import secrets
import sys
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
from sightline.core.errors import (
    ArtifactError,
    DivergedError,
    RunFailedError,
    SightlineError,
    argument_names,
    first_line,
)
from sightline.core.ranks import Ranks
from sightline.core.types import FitResult
from sightline.core.yamlfile import read_yaml
from sightline.data.cache.dataset import PackedDataset
from sightline.data.images.preprocess import Preprocess
from sightline.engine.callbacks import EarlyStopping, FirstLoss
from sightline.engine.checkpoint.content import content_bytes, load_weights
from sightline.engine.checkpoint.writer import check_room
from sightline.engine.progress import Progress, plain_console
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
    advice=("Start a new run for it, or resume this one all the same, which the run will record, with --allow-drift."),
    without_checkpoint=(
        "Put 'last.ckpt' back, or begin a run from its weights: sightline train "
        "module.weights={run}/checkpoints/best.ckpt"
    ),
    traces=("checkpoints/best.ckpt", "log.jsonl"),
)


@dataclass
class Assembly:
    """A run, ready to train: its parts, and the session that holds its directory. Made by `assemble` or `resume`; `fit`
    trains, exports and measures. `show_results` says whether a table of the results is printed at the end."""

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
        """The splits."""
        return self.parts.data.splits

    @property
    def preprocess(self) -> Preprocess:
        """What is done to every image."""
        return self.parts.data.preprocess

    @property
    def spec(self) -> ModelSpec:
        """The network as data."""
        return self.parts.network.spec

    @property
    def loss(self) -> Any:
        """The loss."""
        return self.parts.loss

    @property
    def runtime(self) -> Runtime:
        """Where the run computes."""
        return self.parts.runtime

    @property
    def trainer(self) -> Trainer:
        """The loop, before it is started."""
        return self.session.trainer

    @property
    def run(self) -> Run:
        """The run's directory."""
        return self.session.run

    @argument_names(NAMES)
    def fit(self) -> FitResult:
        """Trains to the end, exports the best weights, and measures them as exported. When interrupted, returns after
        the checkpoint."""
        with closing(self.session) as session:
            try:
                return session.fit([self._measure], self._begin)
            except DivergedError as error:
                raise type(error)(f"{error} {session.last_good()}") from error
            except SightlineError:
                raise
            except Exception as error:  # the network's, the loss's or a callback's own code
                raise RunFailedError(
                    f"{session.place()} failed with {type(error).__name__}: {error}. {session.last_good()}"
                ) from error

    def _begin(self) -> None:
        """What a resumed run writes about itself; not before it really trains."""
        run, parts, divergence = self.run, self.parts, self.divergence
        if divergence is None:
            return
        with _errors_name_place(run.path):
            divergence.note(run, parts.state)
            if self.session.checkpointer is not None:
                self.session.checkpointer.about["environment"] = run.read_environment()
            if divergence.data:
                run.write_json(run.data, parts.data.record)
                write_images(run.path / IMAGES, parts.data.splits, file_sizes(parts.data.source))
            run.write_config(parts.config.to_dict())

    def _measure(self, result: FitResult) -> None:
        try:
            result.metrics = {split: found.metrics for split, found in self.finish().items()}
        except (OSError, SafetensorError) as error:
            raise RunFailedError(
                f"the model of '{self.run.path}' could not be exported and measured: {first_line(error)}. It is "
                f"trained to its end; what is left to do is done by: sightline resume {self.run.path}"
            ) from error
        self.session.artifact(self.run.exported)

    @argument_names(NAMES)
    def finish(self) -> dict[str, SplitResult]:
        """Exports the best checkpoint and writes what the exported model predicts on every evaluation split."""
        run, model = self.run, self.trainer.state.model
        self._load_best(model)
        began = run.read_environment()
        provenance = origin(run.path.name, self.config.to_dict(), run.read_data()["fingerprint"], began)
        recover_export(run.exported)  # before the disk is asked for room, which a killed export may have taken
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
                predictor, self.data[split], self.loss, size, workers, self.parts.meters.evaluation
            )
            write_predictions(run.predictions(split), results[split])
        add_metrics(run.exported, {split: found.metrics for split, found in results.items()})
        if self.show_results and self.config.trainer.progress:
            show_results(run, results, unreadable_images(self.data))
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


@argument_names(NAMES)
def fit(config: TrainConfig | Mapping[str, Any] | str | Path, **given: Any) -> FitResult:
    """Trains what the config describes: a `TrainConfig`, a dict, or a YAML file. See `assemble` for `given`."""
    return assemble(config, **given).fit()


@argument_names(NAMES)
def assemble(config: TrainConfig | Mapping[str, Any] | str | Path, **given: Any) -> Assembly:
    """Makes every part of a run and its directory. A part that is given is used, the others are built from their node
    of the config: `source` (a DataSource), `model` (an nn.Module), `loss` (a callable), `optimizer` (over the model's
    parameters), `task`, `callbacks` (added to the stock ones), `recorder` (added to the run's own logs).

    Raises ConfigError, DataError, ModelError or MissingExtraError before anything is written."""
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
    config = as_config(merge(read_yaml(run.config), changes or {}))
    return _assembled(config, given, Session(run, INTERFACE, ResumePolicy(allow_drift=allow_drift)))


def as_config(config: TrainConfig | Mapping[str, Any] | str | Path) -> TrainConfig:
    """A checked config from any of its forms."""
    if isinstance(config, TrainConfig):
        return TrainConfig.from_dict(config.to_dict())
    return TrainConfig.from_dict(config if isinstance(config, Mapping) else read_yaml(config))


@contextmanager
def _errors_name_place(place: str | Path) -> Iterator[None]:
    """What the system says against reading and writing there is told with the place."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(f"'{place}' cannot be read or written: {first_line(error)}.") from error


def _assembled(config: TrainConfig, given: Mapping[str, Any], session: Session) -> Assembly:
    """Everything of a run, in a session that is held until it has been fitted, or is forgotten. Nothing is written
    before every part of it is there."""
    with ExitStack() as stack:
        with _errors_name_place(config.run.dir if session.new else session.run.path):
            check_callbacks(given.get("callbacks", ()))
            stack.enter_context(session)
            divergence = None if session.new else check_config(session, config)
            record = None if session.new else session.run.read_data()
            parts = build_parts(config, given, fresh=session.saved is None, record=record)
            early_stopping = _early_stopping(parts.config, parts.meters.better)
            _take_place(session, parts, given, divergence)
            training = _training(session, parts, given, early_stopping)
            session.prepare(training, _checkpoints(session, parts, divergence))
        stack.pop_all()
        return Assembly(parts, session, divergence)


def _take_place(session: Session, parts: Parts, given: Mapping[str, Any], divergence: ConfigChanges | None) -> None:
    """Makes the directory of a new run; restores the state of one that is resumed, after a look at its data."""
    config, state = parts.config, parts.state
    if divergence is None:
        if not given:
            suggest_finetuning(config, parts.data.splits["train"])
        session.create(
            config.run.dir, config.run.name, parts.data.source.info.name, lambda made: _fill(made, parts, given)
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
        state.stopped = False  # what ended it is no longer asked for, or is to be asked again


def _training(
    session: Session, parts: Parts, given: Mapping[str, Any], early_stopping: list[EarlyStopping]
) -> FitOptions:
    settings = parts.config.trainer
    # another task's outputs may be anything
    tried = given.get("task") is None and parts.network.spec.outputs != "values"
    first = [FirstLoss(parts.loss, parts.network.spec.outputs)] if tried and session.saved is None else []
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
    place = session.run.path
    changed = divergence is not None and divergence.began is not None and bool(divergence.changed | divergence.data)
    return CheckpointPolicy(
        config.module.monitor,
        better_direction(config, config.module.monitor),
        every_steps=settings.checkpoint_every,
        every_minutes=settings.checkpoint_minutes,
        keep=settings.keep_checkpoints,
        keep_every=settings.keep_every,
        about=_about(session.run, parts),
        requested=None if command is None else lambda: requeue(command, place),
        save_first=changed,
    )


def _fill(run: Run, parts: Parts, given: Mapping[str, Any]) -> None:
    """What a run's directory holds before the first step."""
    run.write_json(run.data, parts.data.record)
    write_images(run.path / IMAGES, parts.data.splits, file_sizes(parts.data.source))
    handed = sorted(set(PARTS) & set(given))
    made_with = collect_environment() | {"id": secrets.token_hex(8), "given": handed, "runtime": parts.resolved.chosen}
    run.write_json(run.environment, made_with)
    run.write_config(parts.config.to_dict(), unresolved=parts.unresolved.to_dict())


def _about(run: Run, parts: Parts) -> dict[str, Any]:
    """What every checkpoint says of where it comes from."""
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
    tell = plain_console().print if config.trainer.progress else None
    key = "trainer.early_stopping.monitor_mode" if monitor != config.module.monitor else "module.monitor_mode"
    better = better_direction(config, monitor, known, key=key, mode=settings.monitor_mode)
    return [EarlyStopping(monitor, better, settings.patience, settings.min_delta, tell)]
