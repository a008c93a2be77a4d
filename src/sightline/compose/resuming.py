"""Compares the config, data and parts of a resumed run with those it was started with, and applies allowed changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sightline.compose.checks import STEPS
from sightline.config.schema import TrainConfig
from sightline.core.errors import ArtifactError, join_names
from sightline.core.identity import Identity, data_values
from sightline.core.mappings import flatten
from sightline.core.types import TrainState
from sightline.metrics.direction import metric_mode
from sightline.runs.directory import Run
from sightline.session import Session

MAY_CHANGE = ("trainer.", "run.", "data.root", "data.on_bad", "data.workers", "data.prefetch", "data.cache")
"""Prefixes of the keys that may differ when a run is resumed, except the keys in `STEPS`. The pixels of the data are
compared in any case."""
_GROUPS = tuple(
    f"module.{key}." for key in ("optimizer._target_", "param_groups", "layer_decay", "head_lr", "decay_1d", "freeze")
)
"""Keys whose change makes the saved state of the optimiser unusable."""
_LENGTHS = ("trainer.max_epochs",)
_BITS = tuple(f"trainer.{key}" for key in ("device", "threads", "deterministic", "channels_last", "compile"))
"""Keys that may change, but may change the last bits of the results."""


@dataclass
class ConfigChanges:
    """The differences between a resumed run and its checkpoint, each as key -> (old value, new value).

    `changed` are config keys that need `allow_drift`; `noted` are keys that may change but may affect the last bits;
    `data` are splits, by fingerprint. `began` is the checkpoint's config, or None if there is no checkpoint."""

    began: TrainConfig | None = None
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    noted: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    data: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def restore(self, session: Session, state: TrainState, config: TrainConfig, epoch_steps: int | None) -> None:
        """Restores `state` from the session's checkpoint, adapting it to changed settings.

        `epoch_steps` is the number of steps per epoch, or None if it is not known."""
        changed = self.changed | self.data
        if self.began is None or not changed:
            session.restore(state)
            return
        now = flatten(config.to_dict())
        sizes = [
            values["data.batch_size"] * values["trainer.accumulate_grad_batches"]
            for values in (flatten(self.began.to_dict()), now)
        ]
        session.restore(
            state,
            keep_optimizer=not any(f"{key}.".startswith(_GROUPS) for key in changed),
            keep_lr=not any(key.startswith(("module.optimizer", "module.lr_scheduler")) for key in changed),
            batch_size=(sizes[0], sizes[1]),
            epoch_steps=epoch_steps,
        )
        if any(key.startswith("module.monitor") for key in changed):
            state.best = None  # the best value of the previous metric

    def note(self, run: Run, state: TrainState) -> None:
        """Adds the changes, with the step and epoch, to `drift` in the run's environment.json.

        The content of that file is also stored in the checkpoints and the exported model. If `module.monitor` changed,
        `best.ckpt` is renamed to `best.ckpt.before`."""
        changes = {} if self.began is None else self.changed | self.data | self.noted
        if not changes:
            return
        environment = run.read_environment()
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": state.step,
            "epoch": state.epoch,
            "changed": {key: list(pair) for key, pair in changes.items()},
        }
        run.write_json(run.environment, environment | {"drift": [*environment.get("drift", ()), entry]})
        if any(key.startswith("module.monitor") for key in changes) and run.best.exists():
            run.best.replace(run.best.with_name(f"{run.best.name}.before"))


def check_given_again(run: Run, given: Mapping[str, Any]) -> None:
    """Raises ArtifactError for a part that was passed in when the run was started and is not in `given`."""
    missing = [name for name in run.read_given() if name not in given]
    if missing:
        arguments = ", ".join(f"{name}=…" for name in missing)
        raise ArtifactError(
            f"'{run.path}' was started with parts passed in from Python: {join_names(missing)}. Its config does not "
            f"describe them. Pass them in again: sightline.resume(path, {arguments})"
        )


def check_config(session: Session, config: TrainConfig) -> ConfigChanges:
    """Compares the config with the one of the checkpoint and returns the differences.

    Raises AnotherTrainingError, which names the keys, if a key differs that may not change, unless the session allows
    drift."""
    if session.saved is None:
        return ConfigChanges()
    # from_dict fills in the defaults of keys that are newer than the checkpoint
    began = TrainConfig.from_dict(session.saved.config)
    before, now = flatten(began.to_dict()), flatten(config.to_dict())
    auto_became_max = before["module.monitor_mode"] == "auto" and now["module.monitor_mode"] == "max"
    if auto_became_max and not metric_mode(began.module.monitor):
        before["module.monitor_mode"] = "max"  # earlier versions read auto as max for unknown metrics
    changes = session.check(Identity(now, _may_change), before)
    fixed = dict.fromkeys(change.key for change in changes if not change.free)
    changed = {key: (before.get(key), now.get(key)) for key in fixed}
    if session.policy.allow_drift:
        changed |= {key: (before[key], now[key]) for key in _LENGTHS if before[key] != now[key]}
    noted = dict.fromkeys(change.key for change in changes if change.key in _BITS)
    return ConfigChanges(began, changed, {key: (before.get(key), now.get(key)) for key in noted})


def check_data(session: Session, record: Mapping[str, Any], detail: Callable[[], str]) -> dict[str, tuple[Any, Any]]:
    """Compares the data with the run's and returns the splits that differ, as `data (split)` -> (old, new fingerprint).

    `record` is the new content of data.json. Raises AnotherTrainingError, which names the splits, if pixels, labels or
    classes have changed, unless the session allows drift. `detail` returns a sentence for the message that names the
    images."""
    before, now = session.run.read_data()["fingerprint"], record["fingerprint"]
    session.check(Identity(data_values(now)), data_values(before), "a training with other images or labels", detail)
    differ = [split for split in sorted({*before, *now}) if before.get(split) != now.get(split)]
    return {f"data ({split})": (before.get(split), now.get(split)) for split in differ}


def _may_change(key: str) -> bool:
    return key.startswith(MAY_CHANGE) and key not in STEPS
