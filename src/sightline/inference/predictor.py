"""`Predictor`: images in, class probabilities or a predicted number out, by the preprocessing that training used."""

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

_DECODE_TOGETHER = 8  # images that a thread decodes before it takes the next task


class Prediction(NamedTuple):
    """The answer of a classifier: class name, its probability, and the probability of every class in class order."""

    label: str
    confidence: float
    probabilities: tuple[float, ...]


class Value(NamedTuple):
    """The answer of a model that predicts a number."""

    value: float


Answer = Prediction | Value
"""What a model answers for an image: a `Value` where it was trained with `data.target=number`."""


@dataclass(frozen=True)
class OutputStep:
    """From a network's outputs to what is answered, the same on every path: evaluation, prediction, serving.

    `kind` is that of `ModelSpec.outputs`. Logits are divided by `temperature` before the softmax (Guo et al., "On
    Calibration of Modern Neural Networks", 2017); probabilities p become p^(1/temperature), normalised, which is the
    same for the softmax of logits. A confidence below `threshold` is not certain."""

    kind: str = "logits"
    temperature: float = 1.0
    threshold: float | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        """Probabilities float32 [B,C] of outputs [B,C]; the outputs of a model that predicts numbers, as float32."""
        outputs = outputs.float()
        if self.kind == "values" or (self.kind == "probabilities" and self.temperature == 1):
            return outputs
        logits = outputs.log() if self.kind == "probabilities" else outputs
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(1)

    def is_certain(self, confidence: float) -> bool:
        """Whether a confidence reaches the threshold."""
        return self.threshold is None or confidence >= self.threshold


_Decoded: TypeAlias = "list[NDArray[np.uint8] | SightlineError]"
_Batch: TypeAlias = "list[tuple[list[Any], Future[_Decoded]]]"
"""Images, and what becomes their pixels or their errors."""


class Predictor:
    """Answers for images with a trained network. Decoding, resizing and normalisation are those of training and
    evaluation, so that what is answered is what was measured.

    `classes` are the class names in output order, empty where the model predicts a number; `manifest` is the artifact's
    description, provenance and metrics. `workers` threads decode (None: one for each core). Several threads may use one
    predictor: they decode side by side, and the network answers one batch at a time."""

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
            raise ValueError(f"workers must be at least 1, not {workers}")
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
        """The network's outputs [B,C] for normalised float32 [B,C,H,W], on the device."""
        if self._process != os.getpid():  # forked, perhaps while another thread held the lock
            self._forward_lock, self._process = threading.Lock(), os.getpid()
        with self._forward_lock, torch.inference_mode():
            answer: Tensor = self.model(x)
        return answer

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Probabilities float32 [B,C] on the CPU for decoded images, uint8 [B,C,H,W]."""
        if not self.classes:
            raise ValueError("the model predicts a number and has no classes; ask for values() or predict()")
        return self._run(pixels)

    def values(self, pixels: Tensor) -> Tensor:
        """The predicted numbers float32 [B] on the CPU for decoded images, uint8 [B,C,H,W]."""
        if self.classes:
            raise ValueError(f"the model has {len(self.classes)} classes; ask for probabilities() or predict()")
        return self._run(pixels).flatten()

    def _run(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != self.preprocess.shape:
            expected = [None, *self.preprocess.shape]
            raise ValueError(f"expected uint8 {expected}, found {pixels.dtype} {list(pixels.shape)}")
        with torch.inference_mode():
            return self.output(self.outputs(self._normalize(pixels.to(self.device)))).cpu()

    @functools.cached_property
    def batch_size(self) -> int:
        """How many images are given to the network at once, so that its activations do not fill the memory."""
        with self._forward_lock:
            return batch_that_fits(self.model, self.preprocess.shape)

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int | None = None) -> list[Answer]:
        """One answer for each image: a file, encoded bytes, uint8 pixels [H,W] or [H,W,C] in RGB order, or a Pillow
        image. `batch_size` is the predictor's own where it is None. Raises DataError naming the first one that cannot
        be read; `predict_each` continues instead."""
        single = isinstance(images, str | PurePath | bytes | bytearray | memoryview | np.ndarray | Image.Image)
        single = single or hasattr(images, "read") or not isinstance(images, Iterable)
        listed: Iterable[Any] = [images] if single else images  # type: ignore[assignment]
        answers: list[Answer] = []
        for _, answer in self.predict_each(listed, batch_size):
            if isinstance(answer, SightlineError):
                raise answer
            answers.append(answer)
        return answers

    def predict_each(
        self, images: Iterable[AnyImage], batch_size: int | None = None
    ) -> Iterator[tuple[AnyImage, Answer | SightlineError]]:
        """(image, answer) for each image, in order; (image, the error) for one that cannot be read.

        `images` may be endless: it is read two batches ahead at most, one is decoded while the network answers the
        other, and nothing is kept of those that are done. Files and encoded bytes are decoded by threads that end with
        this call; pixels and Pillow images are read as they are taken, so the caller may use them again. An exception
        of `images` is raised after the answers to those before it."""
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        numbered = enumerate(images)
        names = current_argument_names()
        pool = ThreadPoolExecutor(self.workers, initializer=adopt_argument_names, initargs=(names,))
        waiting: deque[_Batch] = deque()
        failed: Exception | None = None
        try:
            while failed is None:
                batch: _Batch = []
                failed = self._take(numbered, batch_size, batch, pool)
                if not batch:
                    break
                waiting.append(batch)
                while len(waiting) > 1 or (waiting and all(part.done() for _, part in waiting[0])):
                    yield from self._answer_batch(waiting.popleft())
            while waiting:
                yield from self._answer_batch(waiting.popleft())
            if failed is not None:
                raise failed
        finally:
            if not sys.is_finalizing():  # an iterator that was kept to the end of the program: the threads are gone
                pool.shutdown(wait=True, cancel_futures=True)

    def _take(
        self, numbered: Iterator[tuple[int, Any]], count: int, batch: _Batch, pool: ThreadPoolExecutor
    ) -> Exception | None:
        """Takes up to `count` images into `batch` and begins to decode them; what went wrong with taking the next."""
        files: list[tuple[int, Any]] = []

        def decode(numbered: list[tuple[int, Any]], here: bool) -> None:
            future: Future[_Decoded] = Future() if here else pool.submit(self._decode, numbered)
            if here:
                future.set_result(self._decode(numbered))
            batch.append(([image for _, image in numbered], future))

        def decode_files() -> None:
            if files:
                decode(files.copy(), here=count <= _DECODE_TOGETHER)  # a few are sooner decoded than handed to a thread
                files.clear()

        failed: Exception | None = None
        for _ in range(count):
            try:
                number, image = next(numbered)
            except StopIteration:
                break
            except Exception as error:  # the caller's own iterable
                failed = error
                break
            if isinstance(image, str | PurePath | bytes):
                files.append((number, image))
                if len(files) == _DECODE_TOGETHER:
                    decode_files()
            else:
                decode_files()
                decode([(number, image)], here=True)
        decode_files()
        return failed

    def _answer_batch(self, batch: _Batch) -> Iterator[tuple[Any, Answer | SightlineError]]:
        decoded = [found for _, part in batch for found in part.result()]
        answers = iter(self._answers([found for found in decoded if not isinstance(found, SightlineError)]))
        for image, found in zip((image for part, _ in batch for image in part), decoded, strict=True):
            yield image, found if isinstance(found, SightlineError) else next(answers)

    def _decode(self, numbered: Sequence[tuple[int, Any]]) -> _Decoded:
        found: _Decoded = []
        for number, image in numbered:
            try:
                if isinstance(image, str | PurePath):
                    found.append(self.preprocess.decode(Path(image), f"'{image}'"))
                else:
                    found.append(self.preprocess.decode(image, f"image {number}"))
            except SightlineError as error:
                found.append(error)
        return found

    def _answers(self, decoded: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        if not decoded:
            return []
        pixels = torch.from_numpy(np.stack(decoded))
        if not self.classes:
            return [Value(value) for value in self.values(pixels).tolist()]
        rows = self.probabilities(pixels).tolist()
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        return [Prediction(self.classes[i], row[i], tuple(row)) for i, row in zip(best, rows, strict=True)]
