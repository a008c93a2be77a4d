"""What must hold before a run goes on: its own checkpoint, the config and the data it began with, the parts that were
handed over; and what happens when it is to go on with others all the same."""

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
"""Keys that may differ when a run is resumed, but for those that make another step: the data is compared pixel by pixel
in any case."""
_GROUPS = tuple(
    f"module.{key}." for key in ("optimizer._target_", "param_groups", "layer_decay", "head_lr", "decay_1d", "freeze")
)
_LENGTHS = ("trainer.max_epochs",)
_BITS = tuple(f"trainer.{key}" for key in ("device", "threads", "deterministic", "channels_last", "compile"))
"""Keys that may change, and after which the last bits may be others."""


@dataclass
class ConfigChanges:
    """How a run that is resumed differs from what it began with: `changed` is key -> (was, is), of the keys that may
    not change unless it is asked for; `noted` those that may, and may change bits; `began` is the config of the
    checkpoint, where there is one."""

    began: TrainConfig | None = None
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    noted: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    data: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def restore(self, session: Session, state: TrainState, config: TrainConfig, epoch_steps: int | None) -> None:
        """Puts the checkpoint into the state, by the new settings where they may not be the same."""
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
            state.best = None  # it was the best of another metric

    def note(self, run: Run, state: TrainState) -> None:
        """Writes what changed, and where, into the run's environment.json, and so into its checkpoints and model."""
        found = {} if self.began is None else self.changed | self.data | self.noted
        if not found:
            return
        described = run.read_environment()
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": state.step,
            "epoch": state.epoch,
            "changed": {key: list(pair) for key, pair in found.items()},
        }
        run.write_json(run.environment, described | {"drift": [*described.get("drift", ()), entry]})
        if any(key.startswith("module.monitor") for key in found) and run.best.exists():
            run.best.replace(run.best.with_name(f"{run.best.name}.before"))  # the best of another metric


def check_given_again(run: Run, given: Mapping[str, Any]) -> None:
    """Raises ArtifactError for a part that was handed over when the run began and is not now."""
    missing = [name for name in run.read_given() if name not in given]
    if missing:
        again = ", ".join(f"{name}=…" for name in missing)
        raise ArtifactError(
            f"'{run.path}' was made with parts handed over in Python: {join_names(missing)}. Its config alone would "
            f"make "
            f"another training; hand them over again: sightline.resume(path, {again})"
        )


def check_config(session: Session, config: TrainConfig) -> ConfigChanges:
    """What has changed since the config that the checkpoint was trained with. Raises AnotherTrainingError naming the
    keys that differ from it and may not, unless drift is allowed."""
    if session.saved is None:
        return ConfigChanges()
    # a key that is newer than the checkpoint had the value it has when nobody names it
    began = TrainConfig.from_dict(session.saved.config)
    before, now = flatten(began.to_dict()), flatten(config.to_dict())
    monitored = before["module.monitor_mode"] == "auto" and now["module.monitor_mode"] == "max"
    if monitored and not metric_mode(began.module.monitor):
        before["module.monitor_mode"] = "max"  # what auto meant to an earlier version
    changes = session.check(Identity(now, _may_change), before)
    fixed = dict.fromkeys(change.key for change in changes if not change.free)
    changed = {key: (before.get(key), now.get(key)) for key in fixed}
    if session.policy.allow_drift:
        changed |= {key: (before[key], now[key]) for key in _LENGTHS if before[key] != now[key]}
    noted = dict.fromkeys(change.key for change in changes if change.key in _BITS)
    return ConfigChanges(began, changed, {key: (before.get(key), now.get(key)) for key in noted})


def check_data(session: Session, record: Mapping[str, Any], detail: Callable[[], str]) -> dict[str, tuple[Any, Any]]:
    """What has changed in the data: split -> (fingerprint before, now). Raises AnotherTrainingError naming the splits
    whose pixels, labels or classes are not what the run was made with, unless drift is allowed; `detail` says which
    images they are, where that is known."""
    before, now = session.run.read_data()["fingerprint"], record["fingerprint"]
    session.check(Identity(data_values(now)), data_values(before), "a training with other images or labels", detail)
    differ = [split for split in sorted({*before, *now}) if before.get(split) != now.get(split)]
    return {f"data ({split})": (before.get(split), now.get(split)) for split in differ}


def _may_change(key: str) -> bool:
    return key.startswith(MAY_CHANGE) and key not in STEPS
