"""`Predictor`: class probabilities or predicted numbers for images, with the preprocessing used in training."""

import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sightline.core.errors import SightlineError, adopt_argument_names, current_argument_names
from sightline.core.parallel import available_cores
from sightline.data.images.preprocess import Preprocess
from sightline.engine.runtime import find_device
from sightline.models.probe import batch_that_fits
from sightline.models.spec import ModelSpec

ImageLike = Path | str | bytes | NDArray[np.uint8] | Image.Image
AnyImage = TypeVar("AnyImage", bound=ImageLike)

_DECODE_CHUNK = 8  # images per task of a decoding thread


class Prediction(NamedTuple):
    """The prediction of a classifier for one image.

    `label` is the name of the most probable class, `confidence` its probability, and `probabilities` has the
    probability of every class, in class order."""

    label: str
    confidence: float
    probabilities: tuple[float, ...]


class Value(NamedTuple):
    """The prediction of a regression model for one image."""

    value: float


Answer = Prediction | Value
"""The prediction for one image: a `Value` if the model was trained with `data.target=number`, else a `Prediction`."""


@dataclass(frozen=True)
class OutputStep:
    """The last step of inference: converts a network's outputs to probabilities or values.

    It is used by evaluation, prediction and serving. `kind` is "logits", "probabilities" or "values", as in
    `ModelSpec.outputs`. Logits are divided by `temperature` before the softmax (Guo et al., "On Calibration of Modern
    Neural Networks", 2017). Probabilities p become p^(1/temperature), normalised, which is equivalent for the softmax
    of logits. A prediction whose confidence is below `threshold` counts as uncertain."""

    kind: str = "logits"
    temperature: float = 1.0
    threshold: float | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        """Returns probabilities, float32 [B, C], for `outputs` [B, C]; for the kind "values", `outputs` as float32."""
        outputs = outputs.float()
        if self.kind == "values" or (self.kind == "probabilities" and self.temperature == 1):
            return outputs
        logits = outputs.log() if self.kind == "probabilities" else outputs
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(1)

    def is_certain(self, confidence: float) -> bool:
        """Returns whether `confidence` is at least the threshold; always True without one."""
        return self.threshold is None or confidence >= self.threshold


_Decoded: TypeAlias = "list[NDArray[np.uint8] | SightlineError]"
_Batch: TypeAlias = "list[tuple[list[Any], Future[_Decoded]]]"
"""A list of (images, future of their decoded pixels or errors)."""


class Predictor:
    """Predicts classes or numbers for images with a trained network.

    Decoding, resizing and normalisation are the same as in training and evaluation. `classes` are the class names in
    the order of the outputs, empty for a regression model. `manifest` is the content of the artifact's
    `sightline.json`, with provenance and metrics. `workers` is the number of decoding threads; None means one per
    available core.

    A predictor is thread-safe: several threads decode in parallel, and the network processes one batch at a time. The
    network is moved to `device` and set to evaluation mode."""

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        preprocess: Preprocess,
        classes: Sequence[str],
        *,
        device: str | torch.device = "cpu",
        manifest: Mapping[str, Any] | None = None,
        output: OutputStep | None = None,
        workers: int | None = None,
    ):
        if workers is not None and workers < 1:
            raise ValueError(f"workers: expected an integer >= 1, found {workers}.")
        self.device = find_device(str(device), "device")
        self.model = model.to(self.device).eval()
        self.spec = spec
        self.preprocess = preprocess
        self.classes = tuple(classes)
        self.manifest = dict(manifest or {})
        self.output = OutputStep(spec.outputs) if output is None else replace(output, kind=spec.outputs)
        self.workers = available_cores() if workers is None else workers
        self._normalize = preprocess.normalizer(self.device)
        self._forward_lock, self._process = threading.Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_forward_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _forward_lock=threading.Lock())

    def outputs(self, x: Tensor) -> Tensor:
        """Returns the network's outputs [B, C] for normalised images, float32 [B, C, H, W], both on the device."""
        if self._process != os.getpid():  # the process was forked, perhaps while another thread held the lock
            self._forward_lock, self._process = threading.Lock(), os.getpid()
        with self._forward_lock, torch.inference_mode():
            outputs: Tensor = self.model(x)
        return outputs

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Returns probabilities, float32 [B, C] on the CPU, for decoded images, uint8 [B, C, H, W].

        Raises ValueError for a regression model, or if the dtype or the shape is another."""
        if not self.classes:
            raise ValueError("the model predicts a number and has no classes. Use values() or predict().")
        return self._run(pixels)

    def values(self, pixels: Tensor) -> Tensor:
        """Returns the predicted numbers, float32 [B] on the CPU, for decoded images, uint8 [B, C, H, W].

        Raises ValueError for a classifier, or if the dtype or the shape is another."""
        if self.classes:
            raise ValueError(f"the model has {len(self.classes)} classes. Use probabilities() or predict().")
        return self._run(pixels).flatten()

    def _run(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != self.preprocess.shape:
            expected = ", ".join(map(str, self.preprocess.shape))
            found = str(pixels.dtype).removeprefix("torch.")
            raise ValueError(f"pixels: expected uint8 [B, {expected}], found {found} {list(pixels.shape)}.")
        with torch.inference_mode():
            return self.output(self.outputs(self._normalize(pixels.to(self.device)))).cpu()

    @functools.cached_property
    def batch_size(self) -> int:
        """The default number of images per batch: a power of two up to 256, limited by the size of the activations."""
        with self._forward_lock:
            return batch_that_fits(self.model, self.preprocess.shape)

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int | None = None) -> list[Answer]:
        """Returns one prediction per image, in order; `images` may also be a single image.

        An image is a path, encoded bytes, a Pillow image, or pixels as a uint8 array [H, W] or [H, W, C] in RGB order.
        `batch_size` defaults to the property of that name. Raises DataError naming the first image that cannot be read;
        `predict_each` continues after it."""
        single = isinstance(images, str | PurePath | bytes | bytearray | memoryview | np.ndarray | Image.Image)
        single = single or hasattr(images, "read") or not isinstance(images, Iterable)
        listed: Iterable[Any] = [images] if single else images  # type: ignore[assignment]
        predictions: list[Answer] = []
        for _, result in self.predict_each(listed, batch_size):
            if isinstance(result, SightlineError):
                raise result
            predictions.append(result)
        return predictions

    def predict_each(
        self, images: Iterable[AnyImage], batch_size: int | None = None
    ) -> Iterator[tuple[AnyImage, Answer | SightlineError]]:
        """Yields (image, prediction) for each image, in order, or (image, error) for one that cannot be read.

        `images` may be infinite: at most two batches are read ahead, so that one is decoded while the network processes
        the other, and results are not kept. Files and encoded bytes are decoded by threads that end with this call.
        Pixels and Pillow images are processed as soon as they are read from `images`, so the caller may reuse them. An
        exception of `images` is raised after the predictions for the images before it. Raises ValueError if
        `batch_size` is less than 1."""
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size: expected an integer >= 1, found {batch_size}.")
        numbered = enumerate(images)
        names = current_argument_names()
        pool = ThreadPoolExecutor(self.workers, initializer=adopt_argument_names, initargs=(names,))
        waiting: deque[_Batch] = deque()
        failed: Exception | None = None
        try:
            while failed is None:
                batch: _Batch = []
                failed = self._read_batch(numbered, batch_size, batch, pool)
                if not batch:
                    break
                waiting.append(batch)
                while len(waiting) > 1 or (waiting and all(part.done() for _, part in waiting[0])):
                    yield from self._predict_batch(waiting.popleft())
            while waiting:
                yield from self._predict_batch(waiting.popleft())
            if failed is not None:
                raise failed
        finally:
            if not sys.is_finalizing():  # at interpreter shutdown the threads no longer exist
                pool.shutdown(wait=True, cancel_futures=True)

    def _read_batch(
        self, numbered: Iterator[tuple[int, Any]], count: int, batch: _Batch, pool: ThreadPoolExecutor
    ) -> Exception | None:
        """Reads up to `count` images into `batch` and starts decoding them; returns an exception of the iterator."""
        files: list[tuple[int, Any]] = []

        def decode(chunk: list[tuple[int, Any]], at_once: bool) -> None:
            future: Future[_Decoded] = Future() if at_once else pool.submit(self._decode, chunk)
            if at_once:
                future.set_result(self._decode(chunk))
            batch.append(([image for _, image in chunk], future))

        def decode_files() -> None:
            if files:
                decode(files.copy(), at_once=count <= _DECODE_CHUNK)  # for few images, a thread would cost more
                files.clear()

        failed: Exception | None = None
        for _ in range(count):
            try:
                number, image = next(numbered)
            except StopIteration:
                break
            except Exception as error:  # the caller's iterable may raise anything
                failed = error
                break
            if isinstance(image, str | PurePath | bytes):
                files.append((number, image))
                if len(files) == _DECODE_CHUNK:
                    decode_files()
            else:
                decode_files()
                decode([(number, image)], at_once=True)
        decode_files()
        return failed

    def _predict_batch(self, batch: _Batch) -> Iterator[tuple[Any, Answer | SightlineError]]:
        decoded = [result for _, future in batch for result in future.result()]
        predictions = iter(self._predict_pixels([item for item in decoded if not isinstance(item, SightlineError)]))
        for image, result in zip((image for images, _ in batch for image in images), decoded, strict=True):
            yield image, result if isinstance(result, SightlineError) else next(predictions)

    def _decode(self, numbered: Sequence[tuple[int, Any]]) -> _Decoded:
        decoded: _Decoded = []
        for number, image in numbered:
            try:
                if isinstance(image, str | PurePath):
                    decoded.append(self.preprocess.decode(Path(image), f"'{image}'"))
                else:
                    decoded.append(self.preprocess.decode(image, f"image {number}"))
            except SightlineError as error:
                decoded.append(error)
        return decoded

    def _predict_pixels(self, decoded: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        if not decoded:
            return []
        pixels = torch.from_numpy(np.stack(decoded))
        if not self.classes:
            return [Value(value) for value in self.values(pixels).tolist()]
        rows = self.probabilities(pixels).tolist()
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        return [Prediction(self.classes[i], row[i], tuple(row)) for i, row in zip(best, rows, strict=True)]
