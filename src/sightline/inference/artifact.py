"""The exported model on disk: weights, how to make the network, how to preprocess an image, the class names, and where
it all came from. `load` makes a `Predictor` of it and runs no code that the artifact brings."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from sightline.core import locate
from sightline.core.errors import ArtifactError, SightlineError, first_line
from sightline.core.files import sha256, stale_temporaries, temporary_sibling, write_json
from sightline.data.images.preprocess import Preprocess
from sightline.inference.budget import MemoryBudgetError, memory_budget
from sightline.inference.manifest import FORMAT, MANIFEST, WEIGHTS, WITH_OUTPUT, checksummed, read_manifest
from sightline.inference.predictor import OutputStep, Predictor
from sightline.inference.validate import reject_code, validate_manifest
from sightline.models.pretrained import load_tensors
from sightline.models.spec import ModelSpec, build_model, make_model_spec, without_downloads


def export_model(
    directory: Path,
    model: nn.Module,
    spec: ModelSpec,
    preprocess: Preprocess,
    classes: Sequence[str],
    provenance: Mapping[str, Any],
    output: OutputStep | None = None,
) -> None:
    """Writes the artifact beside `directory` and renames it into place, so that it is never there in part. The
    temperature and the threshold of `output`, where it has them, are part of the artifact."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    recover_export(directory)
    aside = temporary_sibling(directory)
    try:
        aside.mkdir()
        save_model(model, str(aside / WEIGHTS))
        with (aside / WEIGHTS).open("rb+") as file:
            os.fsync(file.fileno())  # the rename must not outlive the bytes; and some disks say only now they are full
        manifest = {
            "format": FORMAT,
            "model": spec.to_dict() | {"network": without_downloads(spec.network)},
            "preprocess": preprocess.to_dict(),
            "classes": list(classes),
            "weights_sha256": sha256(aside / WEIGHTS),
            "provenance": dict(provenance),
            "metrics": {},
        }
        if output is not None and (output.temperature != 1 or output.threshold is not None):
            manifest["format"] = WITH_OUTPUT
            manifest["output"] = {"temperature": output.temperature, "threshold": output.threshold}
        write_json(aside / MANIFEST, checksummed(manifest))
        (aside / WEIGHTS).chmod((aside / MANIFEST).stat().st_mode)  # safetensors makes it readable by the owner alone
        if directory.exists():
            old = temporary_sibling(directory)
            try:
                directory.rename(old)
                aside.rename(directory)
            except BaseException:
                if not directory.exists():  # a signal may come when the second rename is done
                    old.rename(directory)
                raise
            for entry in old.iterdir():  # what the user put there stays
                if not (directory / entry.name).exists():
                    entry.rename(directory / entry.name)
            shutil.rmtree(old)
        else:
            aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def recover_export(directory: Path) -> None:
    """Clears what a kill in the middle of an export left; what the user had put there comes back."""
    for left in stale_temporaries(directory.parent, directory.name):
        own = [entry for entry in left.iterdir() if entry.name not in (WEIGHTS, MANIFEST)] if left.is_dir() else []
        if own:
            directory.mkdir(exist_ok=True)
        for entry in own:
            if not (directory / entry.name).exists():
                entry.rename(directory / entry.name)
        shutil.rmtree(left, ignore_errors=True)


def add_metrics(directory: Path, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Notes what the exported model measured."""
    manifest = read_manifest(directory)
    measured = {split: dict(values) for split, values in metrics.items()}
    write_json(
        directory / MANIFEST, checksummed(manifest | {"format": max(FORMAT, manifest["format"]), "metrics": measured})
    )


def load(
    path: str | Path, *, device: str = "cpu", model: nn.Module | None = None, allow: Sequence[str] | None = ()
) -> Predictor:
    """The predictor of a run directory or of its `exported` folder.

    A stored model may name only networks of torch.nn, torchvision, timm and sightline; `allow` adds dotted prefixes of
    code you trust (None trusts it with anything), `model` hands the network over instead. Raises ArtifactError
    when something is missing or has been changed since it was written."""
    directory = Path(path)
    if not directory.is_dir():
        raise ArtifactError(f"there is no run or exported model '{path}'.")
    if not os.path.lexists(directory / MANIFEST):
        directory = directory / "exported"
    where, weights = directory / MANIFEST, directory / WEIGHTS
    manifest = read_manifest(directory)
    spec, preprocess, classes, checksum, output = validate_manifest(manifest, where)
    tensors = read_checked_weights(weights, checksum)
    if model is None:
        model = _build(spec, where, tensors, None if allow is None else (*locate.TRUSTED, *allow))
    else:
        make_model_spec(model, spec.network, spec.shape, spec.num_classes, spec.outputs, "model")
    try:
        load_tensors(model, tensors, whole=True)
    except Exception as error:  # a network's own code may be in it
        raise ArtifactError(f"'{weights}' does not fit the network: {error}") from error
    return Predictor(model, spec, preprocess, classes, device=device, manifest=manifest, output=output)


def read_checked_weights(path: Path, expected: str, origin: str = "the model was exported with") -> dict[str, Tensor]:
    """The tensors of a safetensors file whose SHA-256 is `expected`. Raises ArtifactError when it is not that file,
    which messages call by its `origin`, and when it is no file of weights."""
    if not path.is_file():
        raise ArtifactError(f"'{path}' is missing." if not os.path.lexists(path) else f"'{path}' is no file.")
    try:
        found = sha256(path)
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}.") from error
    if found != expected:
        raise ArtifactError(f"'{path}' is not the file {origin}: its SHA-256 differs.")
    try:
        return load_file(path)
    except Exception as error:  # the library's own kinds, and torch's for a type of numbers that it has not
        raise ArtifactError(f"'{path}' is no file of weights, or a damaged one: {first_line(error)}.") from error


def _build(spec: ModelSpec, where: Path, tensors: Mapping[str, Tensor], allow: Sequence[str] | None) -> nn.Module:
    """The network that the file `where` describes, to be filled with `tensors`. Without `allow` it is trusted."""
    key = f"'{where}': model.network"
    arguments: dict[str, Any] = {"outputs": spec.outputs, "key": key, "allow": allow}
    try:
        if allow is not None:
            reject_code(spec.network, where, allow)
        with memory_budget(tensors) if allow is not None else nullcontext():
            return build_model(spec.network, spec.shape, spec.num_classes, **arguments)[0]
    except SightlineError:
        raise
    except MemoryBudgetError as error:
        raise ArtifactError(
            f"'{where}' describes a network far larger than its file of weights: it would take {error}. If you trust "
            f"it, make the network yourself and pass it as model=."
        ) from error
    except Exception as error:  # whatever its arguments make of the network's code
        raise ArtifactError(
            f"'{where}': the network cannot be made: {type(error).__name__}: {first_line(error)}."
        ) from error


_KEPT = ("id", "began", "python", "torch", "packages", "git", "given", "drift")
"""What of `environment.json` goes with the model."""


def make_provenance(
    run: str, config: Mapping[str, Any], fingerprint: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """What an artifact's description says of its origin. `run` is the name of the run's directory, `fingerprint` that
    of each split, `environment` what the run noted before its first step; what that lacks is left out."""
    recorded = {name: environment.get(name) for name in _KEPT} | {"machine": environment.get("machine_words")}
    return {
        "run": run,
        "config": dict(config),
        "seed": config.get("seed"),
        "data": dict(fingerprint),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: value for name, value in recorded.items() if value is not None},
    }
