"""The composition root: the only module that knows every part below it. Configuration ends here; what it makes takes
plain arguments. One straight line: data -> network -> optimiser -> task -> run directory -> trainer, then train and
export."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline import locate
from sightline.config.schema import TrainConfig
from sightline.data.augment import standard
from sightline.data.loader import BatchLoader
from sightline.data.packed import PackedDataset, pack_splits
from sightline.data.preprocess import Preprocess
from sightline.data.sources import open_source
from sightline.engine.callbacks import Checkpointer, StopOnSignal
from sightline.engine.checkpoint import load_checkpoint, load_weights
from sightline.engine.progress import Progress
from sightline.engine.runtime import Runtime
from sightline.engine.tasks import SupervisedTask
from sightline.engine.trainer import Trainer
from sightline.errors import ArtifactError, ConfigError, listing, nearest
from sightline.metrics import Meter, better_when, metric_names
from sightline.models.spec import ModelSpec, build_model, describe_model
from sightline.optim import build_optimizer, build_schedule
from sightline.runs.artifact import add_metrics, export_model, load
from sightline.runs.console import decoding_bar, show_results
from sightline.runs.directory import Run, check_free
from sightline.runs.environment import environment
from sightline.runs.evaluate import SplitResult, evaluate_split, write_predictions
from sightline.runs.recorders import JsonlRecorder, Tee, TensorBoardRecorder
from sightline.types import DataSource, FitResult, Recorder, Schedule, TrainState
from sightline.yamlfile import read_yaml

GIVEN = ("source", "model", "loss", "optimizer", "task", "callbacks", "recorder")
"""The parts a caller may hand over instead of describing them."""


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
        trainer = self.trainer
        try:
            with self.runtime.active():
                result = trainer.fit()
        finally:
            if trainer.recorder is not None:
                trainer.recorder.close()
        result.run = self.run.path
        if not result.interrupted:
            with self.runtime.active():
                result.metrics = {split: found.metrics for split, found in self.finish().items()}
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
            results[split] = evaluate_split(predictor, self.data[split], self.loss, size)
            write_predictions(run.predictions(split), results[split])
        add_metrics(run.exported, {split: found.metrics for split, found in results.items()})
        if self.config.trainer.progress:
            show_results(run, results)
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
    _check_given(given)
    if config.run.name is not None:
        check_free(config.run.dir, config.run.name)
    return _assemble(config, given, None)


def resume(path: str | Path, changes: Mapping[str, Any] | None = None, **given: Any) -> Assembly:
    """The assembly of a run that goes on from its last checkpoint. `changes` is a nested dict of `trainer` keys to
    change, such as the device. Raises ArtifactError when there is no checkpoint or the data has changed."""
    run = Run.open(path)
    if not run.last.is_file():
        raise ArtifactError(f"'{run.path}' has no checkpoint to resume from; start again with: sightline train")
    _check_given(given)
    return _assemble(as_config(merged(read_yaml(run.config), changes or {})), given, run)


def as_config(config: TrainConfig | Mapping[str, Any] | str | Path) -> TrainConfig:
    """A checked config from any of its forms."""
    if isinstance(config, TrainConfig):
        return config
    return TrainConfig.from_dict(config if isinstance(config, Mapping) else read_yaml(config))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, group by group."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def open_data(
    config: TrainConfig, source: DataSource | None = None, preprocess: Preprocess | None = None
) -> tuple[dict[str, PackedDataset], Preprocess, DataSource]:
    """Every split of the config's data, decoded, and the finished preprocessing."""
    data = config.data
    if source is None:
        arguments = asdict(data)
        for name in ("source", "batch_size", "eval_batch_size", "preprocess", "augment"):
            del arguments[name]
        source = open_source(data.source, seed=config.seed, **arguments)
    total = sum(len(samples) for samples in source.splits.values())
    with decoding_bar(total, config.trainer.progress) as progress:
        packed, preprocess = pack_splits(source, preprocess or asdict(data.preprocess), progress)
    return packed, preprocess, source


def data_record(data: Mapping[str, PackedDataset], source: DataSource) -> dict[str, Any]:
    """What `data.json` says: where the data came from, its classes and counts, and its fingerprints."""
    prints = {split: packed.fingerprint() for split, packed in data.items()}
    return {
        "name": source.info.name,
        "root": str(source.info.root.resolve()) if source.info.root else None,
        "classes": list(source.info.classes),
        "splits": {split: {"images": len(packed), "classes": packed.counts} for split, packed in data.items()},
        "fingerprint": prints,
    }


def build_loss(config: TrainConfig, device: torch.device | str = "cpu") -> Any:
    """The loss the config describes, on the device."""
    loss = locate.instantiate(config.module.loss, key="module.loss")
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def _assemble(config: TrainConfig, given: Mapping[str, Any], run: Run | None) -> Assembly:
    module, settings = config.module, config.trainer
    _check_targets(config)
    runtime = Runtime(settings.device, seed=config.seed, threads=settings.threads, deterministic=settings.deterministic)
    data, preprocess, source = open_data(config, given.get("source"))
    record = data_record(data, source)
    if run is not None:
        check_same_data(run, record)
    train, evals = _loaders(config, data, preprocess, runtime)
    with runtime.active():
        model, spec = _model(config, given.get("model"), preprocess, len(source.info.classes))
    model.to(runtime.device)
    loss = given.get("loss") or build_loss(config, runtime.device)
    optimizer = given.get("optimizer")
    if optimizer is None:
        target, _, arguments = locate.unfold(module.optimizer, key="module.optimizer")
        optimizer = build_optimizer(target, arguments, model, "module.optimizer")
    elif not {id(p) for group in optimizer.param_groups for p in group["params"]} <= set(map(id, model.parameters())):
        raise TypeError("the given optimizer has parameters that are not the model's; give its model too.")
    _check_monitors(config, evals)
    state = TrainState(model, optimizer, _schedules(config, optimizer, len(train)))
    task = given.get("task")
    if task is None:
        _check_loss(loss, spec, runtime)
        task = SupervisedTask(loss, spec.outputs)
    if run is None:
        run = Run.create(config.run.dir, config.run.name, source.info.name)
        run.write_json(run.data, record)
        run.write_json(run.environment, environment())
        resume_step = None
    else:
        state.meters["train"] = Meter()
        load_checkpoint(run.last, state)
        resume_step = state.step
    run.write_config(config.to_dict())
    keeper = Checkpointer(run.checkpoints, module.monitor, _better(config, module.monitor), settings.checkpoint_every)
    recorders: list[Recorder] = [JsonlRecorder(run.log, resume_step)]
    recorders.append(TensorBoardRecorder(run.tensorboard, list(data), resume_step))
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


def _loaders(
    config: TrainConfig, data: Mapping[str, PackedDataset], preprocess: Preprocess, runtime: Runtime
) -> tuple[BatchLoader, dict[str, BatchLoader]]:
    settings = config.data
    train = BatchLoader(
        data["train"],
        preprocess,
        settings.batch_size,
        shuffle=True,
        augment=standard(**asdict(settings.augment)),
        seed=config.seed,
        device=runtime.device,
    )
    # the test split is looked at once, after training: what picks the best checkpoint must not be what is reported
    evals = {
        split: BatchLoader(packed, preprocess, settings.eval_batch_size, device=runtime.device)
        for split, packed in data.items()
        if split == "val"
    }
    return train, evals


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
        target, _, arguments = locate.unfold(node, key=key)
        monitor = arguments.pop("monitor", config.module.monitor)
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
    return schedules


def _better(config: TrainConfig, monitor: str) -> str:
    given = config.module.monitor_mode
    return given if given != "auto" and monitor == config.module.monitor else better_when(monitor)


def _check_targets(config: TrainConfig) -> None:
    """A name that stands for nothing is told before any image is decoded."""
    module = config.module
    schedulers = module.lr_scheduler if isinstance(module.lr_scheduler, list) else [module.lr_scheduler]
    layers = module.network.get("layers", [module.network])
    for key, nodes in {
        "module.network": layers,
        "module.loss": [module.loss],
        "module.optimizer": [module.optimizer],
        "module.lr_scheduler": [node for node in schedulers if node],
    }.items():
        for node in nodes:
            if isinstance(node.get("_target_"), str):
                locate.resolve(node["_target_"], key=f"{key}._target_")


def _check_monitors(config: TrainConfig, evals: Mapping[str, Any]) -> None:
    """Before epoch 0: a monitor that no metric will ever match would silently keep the wrong checkpoint."""
    names = metric_names(evals)
    schedulers = config.module.lr_scheduler or []
    wanted = {"module.monitor": config.module.monitor}
    for position, node in enumerate(schedulers if isinstance(schedulers, list) else [schedulers]):
        if "monitor" in node:
            wanted[f"module.lr_scheduler[{position}].monitor"] = node["monitor"]
    for key, name in wanted.items():
        if name not in names:
            missing = name.startswith("val_") and "val" not in evals
            hint = " There is no validation split: set data.val." if missing else nearest(name, names)
            raise ConfigError(f"{key}: there will be no metric '{name}'.{hint} There will be: {listing(names, 40)}.")


def _check_loss(loss: Any, spec: ModelSpec, runtime: Runtime) -> None:
    """Tries the loss on an answer of the right shape, before the first step would fail on it."""
    classes = spec.num_classes
    output = torch.full((classes + 1, classes), 1 / classes, device=runtime.device, requires_grad=True)
    target = torch.zeros(classes + 1, dtype=torch.int64, device=runtime.device)  # a length that broadcasts with nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = loss(output, target)
    except Exception as error:  # whatever the loss's own code raises is about these arguments
        raise ConfigError(
            f"module.loss: {type(loss).__name__} cannot compare the network's output, float32 [batch, {classes}], with "
            f"class indices, int64 [batch]: {error}"
        ) from error
    if not isinstance(value, torch.Tensor) or value.ndim:
        found = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ConfigError(f"module.loss: expected one number for a batch, got {found}; set reduction: mean.")
    if spec.outputs == "probabilities" and isinstance(loss, nn.CrossEntropyLoss):
        warnings.warn(
            "the network ends in a softmax and the loss is cross entropy, which applies a softmax of its own: the loss "
            "cannot fall below about 1.46 for 10 classes. Take the softmax out of the network, or set "
            "module.loss._target_=sightline.models.losses.ProbabilityNLL.",
            UserWarning,
            stacklevel=2,
        )


def _check_given(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in GIVEN:
            raise TypeError(f"'{name}' cannot be given.{nearest(name, GIVEN)} What can: {', '.join(GIVEN)}.")


def check_same_data(run: Run, record: Mapping[str, Any]) -> None:
    """Raises ArtifactError naming the first split whose pixels, labels or classes are not what the run was made
    with."""
    before = run.read_data()["fingerprint"]
    for split in sorted({*before, *record["fingerprint"]}):
        if before.get(split) != record["fingerprint"].get(split):
            raise ArtifactError(
                f"the data has changed since '{run.path}' began: its {split} split is not the same. A resumed run must "
                f"see the same images; start a new one for the new data."
            )
