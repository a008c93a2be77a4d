"""The exported model on disk (the artifact): weights, network description, preprocessing, class names and provenance.

`load` returns a `Predictor` for it. It runs no code from the artifact and only networks of trusted packages."""

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
from sightline.core.errors import ArtifactError, SightlineError, did_you_mean, first_line
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
    """Writes an artifact to a temporary directory and renames it to `directory`, so that it is never incomplete there.

    An artifact that is already there is replaced; other files in `directory` are kept. `spec` and `preprocess` describe
    the network and its input, `provenance` the origin (see `make_provenance`). A temperature other than 1 and a
    threshold of `output` are stored in the manifest."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    recover_export(directory)
    temporary = temporary_sibling(directory)
    try:
        temporary.mkdir()
        save_model(model, str(temporary / WEIGHTS))
        with (temporary / WEIGHTS).open("rb+") as file:
            os.fsync(file.fileno())  # before the rename; some file systems report a full disk only here
        manifest = {
            "format": FORMAT,
            "model": spec.to_dict() | {"network": without_downloads(spec.network)},
            "preprocess": preprocess.to_dict(),
            "classes": list(classes),
            "weights_sha256": sha256(temporary / WEIGHTS),
            "provenance": dict(provenance),
            "metrics": {},
        }
        if output is not None and (output.temperature != 1 or output.threshold is not None):
            manifest["format"] = WITH_OUTPUT
            manifest["output"] = {"temperature": output.temperature, "threshold": output.threshold}
        write_json(temporary / MANIFEST, checksummed(manifest))
        (temporary / WEIGHTS).chmod((temporary / MANIFEST).stat().st_mode)  # safetensors lets only the owner read it
        if directory.exists():
            old = temporary_sibling(directory)
            try:
                directory.rename(old)
                temporary.rename(directory)
            except BaseException:
                if not directory.exists():  # a signal may arrive after the second rename
                    old.rename(directory)
                raise
            for entry in old.iterdir():  # keeps files that the user added
                if not (directory / entry.name).exists():
                    entry.rename(directory / entry.name)
            shutil.rmtree(old)
        else:
            temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def recover_export(directory: Path) -> None:
    """Removes the temporary directories of an export that was killed; moves the user's files in them back."""
    for stale in stale_temporaries(directory.parent, directory.name):
        files = [entry for entry in stale.iterdir() if entry.name not in (WEIGHTS, MANIFEST)] if stale.is_dir() else []
        if files:
            directory.mkdir(exist_ok=True)
        for entry in files:
            if not (directory / entry.name).exists():
                entry.rename(directory / entry.name)
        shutil.rmtree(stale, ignore_errors=True)


def add_metrics(directory: Path, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Writes the metrics of the exported model, by split and name, into its manifest."""
    manifest = read_manifest(directory)
    measured = {split: dict(values) for split, values in metrics.items()}
    write_json(
        directory / MANIFEST, checksummed(manifest | {"format": max(FORMAT, manifest["format"]), "metrics": measured})
    )


def load(
    path: str | Path, *, device: str = "cpu", model: nn.Module | None = None, allow: Sequence[str] | None = ()
) -> Predictor:
    """Loads the exported model of a run directory, or of its `exported` folder, as a `Predictor` on `device`.

    A stored model may only use networks of torch.nn, torchvision, timm and sightline. `allow` adds dotted prefixes of
    code you trust; None allows everything. Alternatively, `model` is the network itself, which the weights are loaded
    into. Raises ArtifactError if a file is missing, damaged or was changed after the export, or if the weights do not
    fit; ConfigError if a stored model names code that is not allowed."""
    directory = Path(path)
    if not directory.is_dir():
        siblings = [entry.name for entry in directory.parent.iterdir()] if directory.parent.is_dir() else []
        raise ArtifactError(f"there is no run or exported model '{path}'.{did_you_mean(directory.name, siblings)}")
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
    except Exception as error:  # load_state_dict may run the network's own code
        raise ArtifactError(f"'{weights}' does not fit the network: {' '.join(str(error).split())}") from error
    return Predictor(model, spec, preprocess, classes, device=device, manifest=manifest, output=output)


def read_checked_weights(path: Path, expected: str, origin: str = "the model was exported with") -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file after comparing its SHA-256 with `expected`.

    Raises ArtifactError if the file is missing, unreadable or damaged, or if its SHA-256 differs; that message says
    "is not the file ORIGIN"."""
    if not path.is_file():
        raise ArtifactError(f"'{path}' is missing." if not os.path.lexists(path) else f"'{path}' is not a file.")
    try:
        digest = sha256(path)
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}.") from error
    if digest != expected:
        raise ArtifactError(f"'{path}' is not the file {origin}: its SHA-256 differs.")
    try:
        return load_file(path)
    except Exception as error:  # errors of safetensors, and of torch for a dtype it does not support
        raise ArtifactError(f"'{path}' is damaged or not a safetensors file: {first_line(error)}.") from error


def _build(spec: ModelSpec, where: Path, tensors: Mapping[str, Tensor], allow: Sequence[str] | None) -> nn.Module:
    """Builds the network that the manifest `where` describes, without weights, within the memory budget of `tensors`.

    With `allow=None` the manifest is trusted: neither its names nor the memory are limited."""
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
            f"'{where}' describes a network far larger than its weights file: it would need {error}. If you trust it, "
            f"build the network yourself and pass it as model=."
        ) from error
    except Exception as error:  # the network's constructor may raise anything
        raise ArtifactError(
            f"'{where}': the network cannot be built: {type(error).__name__}: {first_line(error)}."
        ) from error


_PROVENANCE_KEYS = ("id", "began", "python", "torch", "packages", "git", "given", "drift")
"""The keys of `environment.json` that are copied into the manifest."""


def make_provenance(
    run: str, config: Mapping[str, Any], fingerprint: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the provenance of an artifact: run, config, data, environment and time of the export.

    `run` is the name of the run directory, `fingerprint` maps splits to the fingerprints of their data, `environment`
    is the content of the run's environment.json. Keys that it lacks are left out."""
    recorded = {name: environment.get(name) for name in _PROVENANCE_KEYS}
    recorded["machine"] = environment.get("machine_words")
    return {
        "run": run,
        "config": dict(config),
        "seed": config.get("seed"),
        "data": dict(fingerprint),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: value for name, value in recorded.items() if value is not None},
    }
