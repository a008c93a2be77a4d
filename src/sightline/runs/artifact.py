"""The exported model: weights, how to make the network, how to treat an image, the class names, where it all came from.
And `Predictor`, which answers with it. Loading runs no code that the artifact brings."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from sightline import locate
from sightline.data.preprocess import Preprocess
from sightline.engine.runtime import find_device
from sightline.errors import ArtifactError, SightlineError, first_line
from sightline.files import beside, leftovers, sha256, write_json
from sightline.models.pretrained import fill
from sightline.models.probe import batch_that_fits
from sightline.models.spec import ModelSpec, build_model, describe_model, without_downloads
from sightline.runs.budget import TooMuchError, budget
from sightline.runs.manifest import FORMAT, MANIFEST, WEIGHTS, read_manifest, sealed
from sightline.runs.vetting import described, refuse_code

ImageLike = Path | str | bytes | NDArray[np.uint8] | Image.Image


class Prediction(NamedTuple):
    """One answer: the class name, its probability, and the probability of every class in class order."""

    label: str
    confidence: float
    probabilities: tuple[float, ...]


class Value(NamedTuple):
    """One answer of a model that predicts a number."""

    value: float


Answer = Prediction | Value
"""What a model answers for an image: a `Value` where it was trained with `data.target=number`."""


def export_model(
    directory: Path,
    model: nn.Module,
    spec: ModelSpec,
    preprocess: Preprocess,
    classes: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Writes the artifact beside `directory` and renames it into place: it is whole or not there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    recover(directory)
    aside = beside(directory)
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
        write_json(aside / MANIFEST, sealed(manifest))
        (aside / WEIGHTS).chmod((aside / MANIFEST).stat().st_mode)  # safetensors makes it readable by the owner alone
        if directory.exists():
            old = beside(directory)
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


def recover(directory: Path) -> None:
    """Clears what a kill in the middle of an export left; what the user had put there comes back."""
    for left in leftovers(directory.parent, directory.name):
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
    write_json(directory / MANIFEST, sealed(manifest | {"format": FORMAT, "metrics": measured}))


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
    spec, preprocess, classes, checksum = described(manifest, where)
    tensors = read_checked_weights(weights, checksum)
    if model is None:
        model = _build(spec, where, tensors, None if allow is None else (*locate.TRUSTED, *allow))
    else:
        describe_model(model, spec.network, spec.shape, spec.num_classes, spec.outputs, "model")
    try:
        fill(model, tensors, whole=True)
    except Exception as error:  # a network's own code may be in it
        raise ArtifactError(f"'{weights}' does not fit the network: {error}") from error
    return Predictor(model, spec, preprocess, classes, device=device, manifest=manifest)


class Predictor:
    """An exported model that answers. The way from a file to a probability is the one training and evaluation took.

    `classes` are the class names in output order, none where it predicts a number; `manifest` is the artifact's
    description, provenance and metrics."""

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        preprocess: Preprocess,
        classes: Sequence[str],
        *,
        device: str | torch.device = "cpu",
        manifest: Mapping[str, Any] | None = None,
    ):
        self.device = find_device(str(device), "device")
        self.model = model.to(self.device).eval()
        self.spec = spec
        self.preprocess = preprocess
        self.classes = tuple(classes)
        self.manifest = dict(manifest or {})
        self._normalize = preprocess.normalizer(self.device)

    def outputs(self, x: Tensor) -> Tensor:
        """The network's answers [B,C] to normalised float32 [B,C,H,W], on the device."""
        with torch.inference_mode():
            answer: Tensor = self.model(x)
        return answer

    def to_probabilities(self, outputs: Tensor) -> Tensor:
        """Probabilities float32 [B,C] from the network's answers, whichever kind it gives."""
        outputs = outputs.float()
        return outputs if self.spec.outputs == "probabilities" else outputs.softmax(1)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Probabilities float32 [B,C] on the CPU for decoded images, uint8 [B,C,H,W]."""
        if not self.classes:
            raise ValueError("the model predicts a number and has no classes; ask for values() or predict()")
        return self.to_probabilities(self._forward(pixels)).cpu()

    def values(self, pixels: Tensor) -> Tensor:
        """The predicted numbers float32 [B] on the CPU for decoded images, uint8 [B,C,H,W]."""
        if self.classes:
            raise ValueError(f"the model has {len(self.classes)} classes; ask for probabilities() or predict()")
        return self._forward(pixels).float().flatten().cpu()

    def _forward(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != self.preprocess.shape:
            expected = [None, *self.preprocess.shape]
            raise ValueError(f"expected uint8 {expected}, found {pixels.dtype} {list(pixels.shape)}")
        return self.outputs(self._normalize(pixels.to(self.device)))

    @functools.cached_property
    def batch_size(self) -> int:
        """How many images are asked about at once, so that the activations of the network do not fill the memory."""
        return batch_that_fits(self.model, self.preprocess.shape)

    def predict(self, images: ImageLike | Sequence[ImageLike], batch_size: int | None = None) -> list[Answer]:
        """One prediction for each image: a file, encoded bytes, uint8 pixels [H,W] or [H,W,C] in RGB order, or a Pillow
        image. `batch_size` is the predictor's own where it is not given. Raises DataError naming the first one that is
        no image."""
        listed = images if isinstance(images, list | tuple) else [images]
        answers: list[Answer] = []
        batch_size = self.batch_size if batch_size is None else batch_size
        for start in range(0, len(listed), batch_size):
            part = listed[start : start + batch_size]
            decoded = [self._decode(image, f"image {start + i}") for i, image in enumerate(part)]
            answers += self._answers(decoded)
        return answers

    def predict_each(
        self, paths: Sequence[Path], batch_size: int | None = None
    ) -> Iterator[tuple[Path, Answer | SightlineError]]:
        """(path, prediction) for each file; for one that is no image, (path, the error) in its place."""
        batch_size = self.batch_size if batch_size is None else batch_size
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            decoded: dict[Path, NDArray[np.uint8]] = {}
            errors: dict[Path, SightlineError] = {}
            for path in part:
                try:
                    decoded[path] = self._decode(path, "")
                except SightlineError as error:
                    errors[path] = error
            answers = dict(zip(decoded, self._answers(list(decoded.values())), strict=True))
            for path in part:
                yield path, answers[path] if path in answers else errors[path]

    def _decode(self, image: ImageLike, name: str) -> NDArray[np.uint8]:
        if isinstance(image, str | Path):
            return self.preprocess.decode(Path(image), f"'{image}'")
        return self.preprocess.decode(image, name)

    def _answers(self, decoded: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        if not decoded:
            return []
        pixels = torch.from_numpy(np.stack(decoded))
        if not self.classes:
            return [Value(value) for value in self.values(pixels).tolist()]
        rows = self.probabilities(pixels).tolist()
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        return [Prediction(self.classes[i], row[i], tuple(row)) for i, row in zip(best, rows, strict=True)]


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
            refuse_code(spec.network, where, allow)
        with budget(tensors) if allow is not None else nullcontext():
            return build_model(spec.network, spec.shape, spec.num_classes, **arguments)[0]
    except SightlineError:
        raise
    except TooMuchError as error:
        raise ArtifactError(
            f"'{where}' describes a network far larger than its file of weights: it would take {error}. If you trust "
            f"it, make the network yourself and pass it as model=."
        ) from error
    except Exception as error:  # whatever its arguments make of the network's code
        raise ArtifactError(
            f"'{where}': the network cannot be made: {type(error).__name__}: {first_line(error)}."
        ) from error
