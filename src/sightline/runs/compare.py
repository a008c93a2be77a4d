"""What is different between two runs: config, data, environment, training, metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import ArtifactError
from sightline.files import finite
from sightline.runs.directory import Run
from sightline.runs.manifest import MANIFEST
from sightline.runs.record import RunRecord, at, flat, read_record

MISSING = object()
"""Stands where one of the two has nothing of that name, which is not the same as null."""
Pair = tuple[Any, Any]
Changes = dict[str, Pair]


@dataclass(frozen=True)
class Comparison:
    """What differs between the runs `a` and `b`, each difference as name -> (value in a, value in b). A section that is
    empty is the same in both; `splits` are all splits of both, whether they differ or not."""

    a: RunRecord
    b: RunRecord
    config: Changes
    data: Changes
    environment: Changes
    training: Changes
    metrics: Changes
    splits: dict[str, tuple[Pair, bool]]

    @property
    def same_input(self) -> bool:
        """Whether both were asked for the same: config and data."""
        return not self.config and not self.data

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: each difference as {"a": …, "b": …}, without the side that has nothing."""
        sections = {name: getattr(self, name) for name in ("config", "data", "environment", "training", "metrics")}
        plain: dict[str, Any] = {
            name: {key: _plain(pair, name == "metrics") for key, pair in changes.items()}
            for name, changes in sections.items()
        }
        splits = {name: {**_plain(pair), "same": same} for name, (pair, same) in self.splits.items()}
        found: dict[str, Any] = finite(
            {"a": str(self.a.run.path), "b": str(self.b.run.path), **plain, "splits": splits}
        )
        return found


def open_record(path: str | Path) -> RunRecord:
    """The record of the run at `path`, or of the run whose `exported` folder that is. Raises ArtifactError when there
    is none, or a file of it cannot be read: what is not known is not called the same."""
    place = Path(path)
    if (place / MANIFEST).is_file() and Run(place.absolute().parent).config.is_file():
        place = place.parent if place.name not in ("", "..") else place.absolute().parent
    record = read_record(Run.open(place))
    if record.problems:
        raise ArtifactError(f"'{path}' cannot be compared: {' '.join(record.problems)}")
    return record


def compare(a: RunRecord, b: RunRecord) -> Comparison:
    """What differs. Name and place of the runs are left out: no two have the same."""
    names = list(dict.fromkeys([*_splits(a), *_splits(b)]))
    splits = {name: ((_images(a, name), _images(b, name)), _print(a, name) == _print(b, name)) for name in names}
    data = _changes(_data(a), _data(b))
    for name, (images, same) in splits.items():
        if not same:
            data[f"fingerprint.{name}"] = (_print(a, name), _print(b, name))
        if images[0] != images[1]:
            data[f"images.{name}"] = images
    return Comparison(
        a,
        b,
        _changes(_config(a), _config(b)),
        data,
        _changes(_environment(a), _environment(b)),
        _changes(_training(a), _training(b)),
        _changes(_metrics(a), _metrics(b)),
        splits,
    )


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Changes:
    pairs = {key: (a.get(key, MISSING), b.get(key, MISSING)) for key in [*a, *(key for key in b if key not in a)]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _config(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in flat(record.config).items() if key not in ("run.name", "run.dir")}


def _data(record: RunRecord) -> dict[str, Any]:
    left_out = record.data.get("left_out")
    return {
        "name": record.data.get("name"),
        "root": record.data.get("root"),
        "classes": record.data.get("classes"),
        "left_out": len(left_out) if isinstance(left_out, list) else 0,
    }


def _environment(record: RunRecord) -> dict[str, Any]:
    """All but the command and what was chosen by timing, which are in the config, and the time. What git knows may be
    long: a checksum tells it apart."""
    elsewhere = ("command", "runtime", "began", "git")
    state = flat({key: value for key, value in record.environment.items() if key not in elsewhere})
    git = record.environment.get("git")
    if isinstance(git, Mapping):
        untracked = git.get("untracked")
        state["git.commit"] = git.get("commit")
        state["git.diff"] = _digest(git.get("diff"))
        state["git.untracked"] = _digest("\n".join(map(str, untracked)) if isinstance(untracked, list) else None)
    return state


def _digest(text: Any) -> str:
    data = str(text or "").encode("utf-8", "surrogatepass")  # a file name may be no UTF-8
    return f"sha256 {hashlib.sha256(data).hexdigest()[:12]}" if data else "none"


def _training(record: RunRecord) -> dict[str, Any]:
    found: dict[str, Any] = {"state": record.state, "epochs": record.epoch, "steps": record.steps}
    if record.best is not None:
        found[f"best_{record.monitor}"], found["best_epoch"] = record.best
    return found


def _metrics(record: RunRecord) -> dict[str, Any]:
    return {f"{split}_{name}": value for split, values in record.metrics.items() for name, value in values.items()}


def _splits(record: RunRecord) -> Sequence[str]:
    splits = record.data.get("splits")
    return list(splits) if isinstance(splits, Mapping) else []


def _images(record: RunRecord, split: str) -> Any:
    found = at(record.data, "splits", split, "images")
    return MISSING if found is None else found


def _print(record: RunRecord, split: str) -> Any:
    found = at(record.data, "fingerprint", split)
    return MISSING if found is None else found


def _plain(pair: Pair, numbers: bool = False) -> dict[str, Any]:
    sides = {side: value for side, value in zip("ab", pair, strict=True) if value is not MISSING}
    return sides | {"change": sides["b"] - sides["a"]} if numbers and len(sides) == 2 else sides
