"""Comparison of two runs: config, data, environment, training, logs and metrics."""

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
"""Marks a value that one of the two runs does not have, which differs from null."""
CLOCK = ("seconds", "images_per_second")
"""Log values that depend on the clock and are not compared."""
Pair = tuple[Any, Any]
Changes = dict[str, Pair]
Points = dict[tuple[int, bool], tuple[dict[str, Any], int]]


@dataclass(frozen=True)
class LogDivergence:
    """The first difference between two logs: the log point, the quantity, and its `values` in both.

    `agreed` is the step of the last equal log point before it, or 0."""

    step: int
    epoch: int | None
    quantity: str
    values: Pair
    agreed: int = 0

    @property
    def place(self) -> str:
        """The log point as text, such as `step 4 (epoch 0)`; epochs count from 0, as in the log."""
        return f"step {self.step}" if self.epoch is None else f"step {self.step} (epoch {self.epoch})"

    def to_dict(self, sides: tuple[str, str] = ("a", "b")) -> dict[str, Any]:
        """Returns a JSON-ready dict with the values under the keys `sides`; a missing value is left out."""
        values = {side: value for side, value in zip(sides, self.values, strict=True) if value is not MISSING}
        return {"step": self.step, "epoch": self.epoch, "quantity": self.quantity, **values, "agreed": self.agreed}


@dataclass(frozen=True)
class LogComparison:
    """The comparison of two logs.

    `points` is the number of log points that both have, `first` the first difference among them, `alone` the number of
    points that only one of them has, and `last` the last step of each."""

    points: int
    first: LogDivergence | None
    alone: tuple[int, int]
    last: tuple[int, int]

    @property
    def same(self) -> bool:
        """Whether both logs have the same points and values."""
        return self.first is None and self.alone == (0, 0)


@dataclass(frozen=True)
class Comparison:
    """The differences between the runs `a` and `b`.

    `config`, `data`, `environment`, `training` and `metrics` map names to (value in a, value in b) and are empty if
    nothing differs. `splits` maps every split of either run to its ((images in a, images in b), whether the data is the
    same). `images` are the images that differ; it is None if no split differs, if a run has no image manifest, or if
    the preprocessing differs."""

    a: RunRecord
    b: RunRecord
    config: Changes
    data: Changes
    environment: Changes
    training: Changes
    metrics: Changes
    splits: dict[str, tuple[Pair, bool]]
    images: ImageChanges | None
    log: LogComparison

    @property
    def same_input(self) -> bool:
        """Whether config and data of both runs are equal."""
        return not self.config and not self.data

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-ready dict with each difference as {"a": …, "b": …}; a missing value is left out."""
        sections = {name: getattr(self, name) for name in ("config", "data", "environment", "training", "metrics")}
        plain: dict[str, Any] = {
            name: {key: _pair_to_dict(pair, name == "metrics") for key, pair in changes.items()}
            for name, changes in sections.items()
        }
        log = {"points": self.log.points, "only_a": self.log.alone[0], "only_b": self.log.alone[1]}
        result: dict[str, Any] = replace_non_finite(
            {
                "a": str(self.a.run.path),
                "b": str(self.b.run.path),
                **plain,
                "splits": {name: {**_pair_to_dict(pair), "same": same} for name, (pair, same) in self.splits.items()},
                "images": None if self.images is None else self.images.to_dict(),
                "log": log,
                "first_difference": None if self.log.first is None else self.log.first.to_dict(),
            }
        )
        return result


def open_record(path: str | Path) -> RunRecord:
    """Returns the record of the run at `path`, which may also be the `exported` folder of a run.

    Raises ArtifactError if there is no run, or if one of its files cannot be read."""
    place = Path(path)
    if (place / MANIFEST).is_file() and Run(place.absolute().parent).config.is_file():
        place = place.parent if place.name not in ("", "..") else place.absolute().parent
    record = read_record(Run.open(place))
    if record.problems:
        raise ArtifactError(f"'{path}' cannot be compared: {' '.join(record.problems)}")
    return record


def compare(a: RunRecord, b: RunRecord) -> Comparison:
    """Returns the differences between two runs. Their names and directories are not compared."""
    names = list(dict.fromkeys([*_splits(a), *_splits(b)]))
    splits = {
        name: ((_image_count(a, name), _image_count(b, name)), _fingerprint(a, name) == _fingerprint(b, name))
        for name in names
    }
    data = _changes(_data(a), _data(b))
    for name, (counts, same) in splits.items():
        if not same:
            data[f"fingerprint.{name}"] = (_fingerprint(a, name), _fingerprint(b, name))
        if counts[0] != counts[1]:
            data[f"images.{name}"] = counts
    config = _changes(_config(a), _config(b))
    same_preprocess = not any(key.startswith("data.preprocess.") for key in config)
    return Comparison(
        a,
        b,
        config,
        data,
        _changes(_environment(a), _environment(b)),
        _changes(_training(a), _training(b)),
        _changes(_metrics(a), _metrics(b)),
        splits,
        image_changes(a.run, b.run) if same_preprocess and not all(same for _, same in splits.values()) else None,
        compare_logs(a.run, b.run),
    )


def image_changes(a: Run, b: Run) -> ImageChanges | None:
    """Returns which images differ, or None if one of the runs has no image manifest.

    Raises ArtifactError if a manifest is damaged."""
    before, after = read_images(a.path / IMAGES), read_images(b.path / IMAGES)
    return None if before is None or after is None else compare_images(before, after)


def compare_logs(a: Run, b: Run, *, whole: bool = False) -> LogComparison:
    """Compares two undamaged logs point by point, in order, without the values in `CLOCK`.

    With `whole`, a quantity that only one of two log points has is a difference, too."""
    points_a, points_b = _points(a), _points(b)
    shared = [key for key in points_a if key in points_b]
    first: LogDivergence | None = None
    agreed = 0
    for step, kind in shared:
        (row, previous), (other, other_previous) = points_a[step, kind], points_b[step, kind]
        names = [name for name in (*row, *(name for name in other if name not in row)) if name not in CLOCK]
        for name in names:
            values = row.get(name, MISSING), other.get(name, MISSING)
            # `loss` is the mean since the previous log point, so it is comparable only if that is at the same step
            comparable = whole or (MISSING not in values and (name != "loss" or previous == other_previous))
            if comparable and values[0] != values[1]:
                first = LogDivergence(step, row.get("epoch", other.get("epoch")), name, values, agreed)
                break
        if first is not None:
            break
        agreed = step
    alone = len(points_a) - len(shared), len(points_b) - len(shared)
    return LogComparison(len(shared), first, alone, (_last_step(points_a), _last_step(points_b)))


def _points(run: Run) -> Points:
    """Maps (step, whether the point ends an epoch) to (row, step of the previous point)."""
    points: Points = {}
    previous = 0
    for row in _rows(run.log):
        points[row["step"], "train_loss" in row] = (row, previous)
        previous = row["step"]
    return points


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Returns the rows of the complete lines of a log that `read_record` has checked."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return (json.loads(line) for line in lines)


def _last_step(points: Points) -> int:
    return max((step for step, _ in points), default=0)


def round_pair(pair: Pair) -> Pair:
    """Rounds floats to four significant digits, unless this makes two different values equal."""
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
    """Returns the environment to compare, flattened, with checksums in place of git's diff and untracked files.

    The id, the time, the command, the settings chosen by timing and the changes made on resuming are not in it."""
    left_out = ("id", "command", "runtime", "began", "drift", "git")
    state = flatten({key: value for key, value in record.environment.items() if key not in left_out})
    git = record.environment.get("git")
    if isinstance(git, Mapping):
        untracked = git.get("untracked")
        state["git.commit"] = git.get("commit")
        state["git.diff"] = _digest(git.get("diff"))
        state["git.untracked"] = _digest("\n".join(map(str, untracked)) if isinstance(untracked, list) else None)
    return state


def _digest(text: Any) -> str:
    data = str(text or "").encode("utf-8", "surrogatepass")  # file names may be invalid UTF-8
    return f"sha256 {hashlib.sha256(data).hexdigest()[:12]}" if data else "none"


def _training(record: RunRecord) -> dict[str, Any]:
    training: dict[str, Any] = {"state": record.state, "epochs": record.epoch, "steps": record.steps}
    if record.best is not None:
        training[f"best_{record.monitor}"], training["best_epoch"] = record.best
    return training


def _metrics(record: RunRecord) -> dict[str, Any]:
    return {f"{split}_{name}": value for split, values in record.metrics.items() for name, value in values.items()}


def _splits(record: RunRecord) -> Sequence[str]:
    splits = record.data.get("splits")
    return list(splits) if isinstance(splits, Mapping) else []


def _image_count(record: RunRecord, split: str) -> Any:
    count = get_at_path(record.data, "splits", split, "images")
    return MISSING if count is None else count


def _fingerprint(record: RunRecord, split: str) -> Any:
    fingerprint = get_at_path(record.data, "fingerprint", split)
    return MISSING if fingerprint is None else fingerprint


def _pair_to_dict(pair: Pair, with_change: bool = False) -> dict[str, Any]:
    sides = {side: value for side, value in zip("ab", pair, strict=True) if value is not MISSING}
    return sides | {"change": sides["b"] - sides["a"]} if with_change and len(sides) == 2 else sides
