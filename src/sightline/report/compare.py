"""What is different between two runs: config, data, environment, training and where its log parts, metrics."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.core.errors import ArtifactError
from sightline.core.files import replace_non_finite
from sightline.core.mappings import flatten, get_at_path
from sightline.inference.manifest import MANIFEST
from sightline.report.record import RunRecord, read_record
from sightline.runs.directory import Run
from sightline.runs.images import IMAGES, ImageChanges, compare_images, read_images

MISSING = object()
"""Stands where one of the two has nothing of that name, which is not the same as null."""
CLOCK = ("seconds", "images_per_second")
"""What a log says of the clock, which never comes twice."""
Pair = tuple[Any, Any]
Changes = dict[str, Pair]
Points = dict[tuple[int, bool], tuple[dict[str, Any], int]]


@dataclass(frozen=True)
class LogDivergence:
    """Where two logs part: the log point, the quantity, and its value in each. `agreed` is the last step before it at
    which all was the same, 0 where there is none."""

    step: int
    epoch: int | None
    quantity: str
    values: Pair
    agreed: int = 0

    @property
    def place(self) -> str:
        """The log point in words; epochs count from 0, as in the log."""
        return f"step {self.step}" if self.epoch is None else f"step {self.step} (epoch {self.epoch})"

    def to_dict(self, sides: tuple[str, str] = ("a", "b")) -> dict[str, Any]:
        """JSON-ready; a side without such a quantity is left out."""
        values = {side: value for side, value in zip(sides, self.values, strict=True) if value is not MISSING}
        return {"step": self.step, "epoch": self.epoch, "quantity": self.quantity, **values, "agreed": self.agreed}


@dataclass(frozen=True)
class LogComparison:
    """Two logs side by side: how many log points both have, the `first` difference among these, how many points each
    has `alone`, and the `last` step of each."""

    points: int
    first: LogDivergence | None
    alone: tuple[int, int]
    last: tuple[int, int]

    @property
    def same(self) -> bool:
        """Whether both say the same from beginning to end."""
        return self.first is None and self.alone == (0, 0)


@dataclass(frozen=True)
class Comparison:
    """What differs between the runs `a` and `b`, each difference as name -> (value in a, value in b). A section that is
    empty is the same in both; `splits` are all splits of both, whether they differ or not. `pictures` says which of
    them differ, where both runs know and had prepared them alike."""

    a: RunRecord
    b: RunRecord
    config: Changes
    data: Changes
    environment: Changes
    training: Changes
    metrics: Changes
    splits: dict[str, tuple[Pair, bool]]
    pictures: ImageChanges | None
    log: LogComparison

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
        log = {"points": self.log.points, "only_a": self.log.alone[0], "only_b": self.log.alone[1]}
        found: dict[str, Any] = replace_non_finite(
            {
                "a": str(self.a.run.path),
                "b": str(self.b.run.path),
                **plain,
                "splits": {name: {**_plain(pair), "same": same} for name, (pair, same) in self.splits.items()},
                "pictures": None if self.pictures is None else self.pictures.to_dict(),
                "log": log,
                "first_difference": None if self.log.first is None else self.log.first.to_dict(),
            }
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
    config = _changes(_config(a), _config(b))
    alike = not any(key.startswith("data.preprocess.") for key in config)
    return Comparison(
        a,
        b,
        config,
        data,
        _changes(_environment(a), _environment(b)),
        _changes(_training(a), _training(b)),
        _changes(_metrics(a), _metrics(b)),
        splits,
        image_changes(a.run, b.run) if alike and not all(same for _, same in splits.values()) else None,
        compare_logs(a.run, b.run),
    )


def image_changes(a: Run, b: Run) -> ImageChanges | None:
    """Which pictures differ; None where one of the runs does not know what its pictures were. Raises ArtifactError
    when that is damaged."""
    before, after = read_images(a.path / IMAGES), read_images(b.path / IMAGES)
    return None if before is None or after is None else compare_images(before, after)


def compare_logs(a: Run, b: Run, *, whole: bool = False) -> LogComparison:
    """Two logs, neither of them damaged, point by point in order, but for what they say of the clock. With `whole`, a
    quantity that a log point has in one of them alone is a difference, too."""
    ours, theirs = _points(a), _points(b)
    shared = [key for key in ours if key in theirs]
    first: LogDivergence | None = None
    agreed = 0
    for step, kind in shared:
        (row, since), (other, other_since) = ours[step, kind], theirs[step, kind]
        names = [name for name in (*row, *(name for name in other if name not in row)) if name not in CLOCK]
        for name in names:
            values = row.get(name, MISSING), other.get(name, MISSING)
            # the loss of a log point is the mean since the one before: of other steps, where that was another
            comparable = whole or (MISSING not in values and (name != "loss" or since == other_since))
            if comparable and values[0] != values[1]:
                first = LogDivergence(step, row.get("epoch", other.get("epoch")), name, values, agreed)
                break
        if first is not None:
            break
        agreed = step
    alone = len(ours) - len(shared), len(theirs) - len(shared)
    return LogComparison(len(shared), first, alone, (_last(ours), _last(theirs)))


def _points(run: Run) -> Points:
    """The log points by step and whether they end an epoch; each with its row and the step of the point before it."""
    found: Points = {}
    before = 0
    for row in _rows(run.log):
        found[row["step"], "train_loss" in row] = (row, before)
        before = row["step"]
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log that `read_record` found nothing wrong with."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return (json.loads(line) for line in lines)


def _last(points: Points) -> int:
    return max((step for step, _ in points), default=0)


def round_pair(pair: Pair) -> Pair:
    """Numbers with four digits, if these tell the two apart."""
    a, b = (float(f"{side:.4g}") if isinstance(side, float) else side for side in pair)
    return pair if a == b else (a, b)


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Changes:
    pairs = {key: (a.get(key, MISSING), b.get(key, MISSING)) for key in [*a, *(key for key in b if key not in a)]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _config(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in flatten(record.config).items() if key not in ("run.name", "run.dir")}


def _data(record: RunRecord) -> dict[str, Any]:
    left_out = record.data.get("left_out")
    return {
        "name": record.data.get("name"),
        "root": record.data.get("root"),
        "classes": record.data.get("classes"),
        "left_out": len(left_out) if isinstance(left_out, list) else 0,
    }


def _environment(record: RunRecord) -> dict[str, Any]:
    """All but what is in the config, the command, what was chosen by timing and what drifted, and what no two runs
    share, time and id. What git knows may be long: a checksum tells it apart."""
    elsewhere = ("id", "command", "runtime", "began", "drift", "git")
    state = flatten({key: value for key, value in record.environment.items() if key not in elsewhere})
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
    found = get_at_path(record.data, "splits", split, "images")
    return MISSING if found is None else found


def _print(record: RunRecord, split: str) -> Any:
    found = get_at_path(record.data, "fingerprint", split)
    return MISSING if found is None else found


def _plain(pair: Pair, numbers: bool = False) -> dict[str, Any]:
    sides = {side: value for side, value in zip("ab", pair, strict=True) if value is not MISSING}
    return sides | {"change": sides["b"] - sides["a"]} if numbers and len(sides) == 2 else sides
