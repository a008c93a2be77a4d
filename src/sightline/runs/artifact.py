"""The exported model: weights, how to make the network, how to treat an image, the class names, where it all came from.
And `Predictor`, which answers with it. Loading runs no code that the artifact brings."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from sightline.errors import ArtifactError, DataError, SightlineError
from sightline.files import beside, sha256, write_json
from sightline.models.pretrained import fill
from sightline.models.spec import OUTPUTS, ModelSpec, build_model, describe_model, without_downloads
from sightline.runs.manifest import FORMAT, MANIFEST, WEIGHTS, read_manifest

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
    aside = beside(directory)
    try:
        aside.mkdir()
        save_model(model, str(aside / WEIGHTS))
        manifest = {
            "format": FORMAT,
            "model": spec.to_dict() | {"network": without_downloads(spec.network)},
            "preprocess": preprocess.to_dict(),
            "classes": list(classes),
            "weights_sha256": sha256(aside / WEIGHTS),
            "provenance": dict(provenance),
            "metrics": {},
        }
        write_json(aside / MANIFEST, manifest)
        (aside / WEIGHTS).chmod((aside / MANIFEST).stat().st_mode)  # safetensors makes it readable by the owner alone
        if directory.exists():
            old = beside(directory)
            directory.rename(old)
            try:
                aside.rename(directory)
            except BaseException:
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


def add_metrics(directory: Path, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Notes what the exported model measured."""
    manifest = read_manifest(directory)
    write_json(directory / MANIFEST, manifest | {"metrics": {split: dict(values) for split, values in metrics.items()}})


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
    if not (directory / MANIFEST).is_file():
        directory = directory / "exported"
    manifest = read_manifest(directory)
    weights = directory / WEIGHTS
    try:
        expected = manifest["weights_sha256"]
        spec = ModelSpec.from_dict(manifest["model"])
        preprocess = Preprocess.from_dict(manifest["preprocess"])
        classes = tuple(manifest["classes"])
    except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
        raise ArtifactError(f"'{directory / MANIFEST}' is damaged: {error}.") from error
    counts = (1, 0) if spec.outputs == "values" else (len(classes), len(classes))
    known = spec.outputs in OUTPUTS and (spec.num_classes, len(classes)) == counts
    if not isinstance(spec.network, dict) or not known or spec.shape != preprocess.shape:
        raise ArtifactError(f"'{directory / MANIFEST}' is damaged: its network, classes and preprocessing disagree.")
    if not weights.is_file():
        raise ArtifactError(f"'{weights}' is missing.")
    if sha256(weights) != expected:
        raise ArtifactError(f"'{weights}' is not the file the model was exported with: its SHA-256 differs.")
    if model is None:
        _refuse_downloads(spec.network, directory)
        allowed = None if allow is None else (*locate.TRUSTED, *allow)
        model, _ = build_model(
            spec.network, spec.shape, spec.num_classes, outputs=spec.outputs, key="model.network", allow=allowed
        )
    else:
        describe_model(model, spec.network, spec.shape, spec.num_classes, spec.outputs, "model")
    try:
        fill(model, load_file(weights), whole=True)
    except (RuntimeError, ValueError) as error:  # a network's own code may be in it
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

    def predict(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 256) -> list[Answer]:
        """One prediction for each image: a file, encoded bytes, uint8 pixels [H,W] or [H,W,C] in RGB order, or a Pillow
        image. Raises DataError naming the first one that is no image."""
        listed = images if isinstance(images, list | tuple) else [images]
        answers: list[Answer] = []
        for start in range(0, len(listed), batch_size):
            part = listed[start : start + batch_size]
            decoded = [self._decode(image, f"image {start + i}") for i, image in enumerate(part)]
            answers += self._answers(decoded)
        return answers

    def predict_each(
        self, paths: Sequence[Path], batch_size: int = 256
    ) -> Iterator[tuple[Path, Answer | SightlineError]]:
        """(path, prediction) for each file; for one that is no image, (path, the error) in its place."""
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


def _refuse_downloads(network: Mapping[str, Any], directory: Path) -> None:
    """A model name such as timm's `hf-hub:...` fetches code and weights from elsewhere; an artifact may not."""
    if without_downloads(network) != dict(network):
        raise ArtifactError(
            f"'{directory / MANIFEST}' asks for weights from elsewhere; it was changed after its export."
        )
    if any("class" in node for node in _nodes(network)):
        raise ArtifactError(f"'{directory / MANIFEST}' has a node with 'class'; a stored model has '_target_' alone.")
    name = next(_remote_names(network), None)
    if name is not None:
        raise ArtifactError(
            f"'{directory / MANIFEST}' names the remote model '{name}'; pass the network as model= instead."
        )


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping at any depth."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def _remote_names(network: Mapping[str, Any]) -> Iterator[str]:
    """Every text with a colon among the arguments of a timm model."""
    for node in _nodes(network):
        if str(node.get("_target_")).startswith("timm."):
            yield from (value for value in node.values() if isinstance(value, str) and ":" in value)
