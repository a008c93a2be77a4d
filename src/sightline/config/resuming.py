"""What must hold before a run goes on: its own checkpoint, the config and the data it began with, the parts that were
handed over; and what happens when it is to go on with others all the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sightline.config.checks import STEPS
from sightline.config.schema import TrainConfig
from sightline.engine.checkpoint import restore
from sightline.engine.drift import restore_changed
from sightline.errors import ArtifactError, listing
from sightline.monitors import better_when
from sightline.runs.directory import Run
from sightline.runs.record import at, flat
from sightline.types import TrainState

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
class Drift:
    """What is not as it was when a run began: `changed` is key -> (was, is), of the keys that may not change unless it
    is asked for; `noted` those that may, and may change bits; `began` is the config of the checkpoint."""

    began: TrainConfig
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    noted: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def restore(
        self, content: Mapping[str, Any], state: TrainState, path: Path, config: TrainConfig, epoch_steps: int | None
    ) -> None:
        """Puts the checkpoint into the state, by the new settings where they may be others."""
        if not self.changed:
            restore(content, state, path)
            return
        now = flat(config.to_dict())
        sizes = [
            values["data.batch_size"] * values["trainer.accumulate_grad_batches"]
            for values in (flat(self.began.to_dict()), now)
        ]
        restore_changed(
            content,
            state,
            path,
            keep_optimizer=not any(f"{key}.".startswith(_GROUPS) for key in self.changed),
            keep_lr=not any(key.startswith(("module.optimizer", "module.lr_scheduler")) for key in self.changed),
            batch_size=(sizes[0], sizes[1]),
            epoch_steps=epoch_steps,
        )
        if any(key.startswith("module.monitor") for key in self.changed):
            state.best = None  # it was the best of another metric

    def note(self, run: Run, state: TrainState) -> None:
        """Writes what changed, and where, into the run's environment.json, and so into its checkpoints and model."""
        found = self.changed | self.noted
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
            f"'{run.path}' was made with parts handed over in Python: {listing(missing)}. Its config alone would make "
            f"another training; hand them over again: sightline.resume(path, {again})"
        )


def check_own(run: Run, path: Path, content: Mapping[str, Any]) -> None:
    """Raises ArtifactError for a checkpoint that another run wrote."""
    told = at(content, "about", "id")
    if told is not None and run.id is not None and told != run.id:
        raise ArtifactError(
            f"'{path}' belongs to another run, '{at(content, 'about', 'run')}': it was copied here. Resume that one, "
            f"or begin a run from its weights: sightline train module.weights={path}"
        )


def check_same_config(run: Run, config: TrainConfig, saved: Mapping[str, Any], allow: bool) -> Drift:
    """What has changed since the config `saved` in the checkpoint. Raises ArtifactError naming the keys that differ
    from it and may not, unless `allow`."""
    # a key that is newer than the checkpoint had the value it has when nobody names it
    began = TrainConfig.from_dict(saved)
    before, now = flat(began.to_dict()), flat(config.to_dict())
    differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    free = [key for key in differ if key.startswith(MAY_CHANGE) and key not in STEPS]
    if (
        began.module.monitor_mode == "auto"
        and config.module.monitor_mode == "max"
        and not better_when(began.module.monitor)
    ):  # what auto meant to an earlier version
        free += [key for key in differ if key == "module.monitor_mode"]
    fixed = [key for key in differ if key not in free]
    if fixed and not allow:
        told = listing(f"{key} (was {before.get(key)}, is {now.get(key)})" for key in fixed)
        may = f" {listing(free)} may change." if free else ""
        raise ArtifactError(
            f"'{run.config}' is not the config the run began with: {told}.{may} Another config makes another training: "
            f"start a new run for it, or go on with it all the same, which the run will record, with --allow-drift."
        )
    changed = {key: (before.get(key), now.get(key)) for key in fixed}
    if allow:
        changed |= {key: (before[key], now[key]) for key in _LENGTHS if before[key] != now[key]}
    return Drift(began, changed, {key: (before.get(key), now.get(key)) for key in free if key in _BITS})


def check_same_data(
    run: Run, record: Mapping[str, Any], told: Callable[[], str], allow: bool
) -> dict[str, tuple[Any, Any]]:
    """What has changed in the data: split -> (fingerprint before, now). Raises ArtifactError naming the first split
    whose pixels, labels or classes are not what the run was made with, unless `allow`; `told` says which pictures they
    are, where that is known."""
    before, now = run.read_data()["fingerprint"], record["fingerprint"]
    differ = [split for split in sorted({*before, *now}) if before.get(split) != now.get(split)]
    if differ and not allow:
        raise ArtifactError(
            f"the data has changed since '{run.path}' began: its {differ[0]} split is not the same.{told()} A resumed "
            f"run must see the same images: start a new one for the new data, or go on with it all the same, which the "
            f"run will record, with --allow-drift."
        )
    return {f"data ({split})": (before.get(split), now.get(split)) for split in differ}
