"""`Predictor`: predictions that do not depend on how images are passed, errors per image, use by several threads."""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.images import noise, write_image
from sightline.core.errors import ArtifactError, SightlineError
from sightline.data.images.preprocess import Preprocess
from sightline.inference.artifact import add_metrics, export_model, load
from sightline.inference.manifest import MANIFEST, checksummed
from sightline.inference.predictor import OutputStep, Prediction, Predictor
from sightline.models.spec import ModelSpec

CLASSES = ("dark", "bright", "other")
PREPROCESS = Preprocess(8, 8, 3)
NETWORK = {
    "layers": [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.Linear", "in_features": 192, "out_features": 3}]
}
SPEC = ModelSpec(NETWORK, (3, 8, 8), 3)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def predictor(**options: object) -> Predictor:
    return Predictor(network(), SPEC, PREPROCESS, CLASSES, **options)  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / f"{i:02}.png", noise(8, 8, 3, seed=i)) for i in range(21)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 21, 100, None])
def test_predictions_do_not_depend_on_batches_or_threads(
    files: list[Path], workers: int, batch_size: int | None
) -> None:
    expected = predictor(workers=1).predict(files, batch_size=21)
    predictions = predictor(workers=workers).predict(files, batch_size)
    assert [prediction.label for prediction in predictions if isinstance(prediction, Prediction)] == [
        prediction.label for prediction in expected if isinstance(prediction, Prediction)
    ]
    for one, other in zip(predictions, expected, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_every_form_of_an_image_has_the_same_prediction(files: list[Path]) -> None:
    with Image.open(files[0]) as image:
        image.load()
    forms = [files[0], str(files[0]), files[0].read_bytes(), np.asarray(image), image]
    predictions = predictor().predict(forms, batch_size=1)
    assert len(set(predictions)) == 1
    assert predictor().predict(files[0]) == predictions[:1]
    assert predictor().predict(iter(forms[:2]), batch_size=1) == predictions[:2]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_image_has_a_prediction_or_an_error(files: list[Path], tmp_path: Path, batch_size: int) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    mixed = [files[0], bad, files[1], tmp_path / "missing.png", b"", files[2]]
    results = list(predictor(workers=2).predict_each(mixed, batch_size))
    assert [image for image, _ in results] == mixed
    assert [isinstance(result, SightlineError) for _, result in results] == [False, True, False, True, True, False]
    for (_, result), name in zip(results[1:5:2], ("bad.png", "missing.png"), strict=True):
        assert name in str(result)
    assert "image 4" in str(results[4][1])
    alone = predictor().predict([files[0], files[1], files[2]], 1)
    for result, other in zip([results[i][1] for i in (0, 2, 5)], alone, strict=True):
        assert isinstance(result, Prediction)
        assert result.label == other.label  # type: ignore[union-attr]
    with pytest.raises(SightlineError, match=r"bad\.png"):
        predictor().predict(mixed)


def test_an_endless_iterator_is_read_only_as_needed(files: list[Path]) -> None:
    """At most two batches are read ahead, so that memory does not grow with the number of images."""
    read = 0

    def endless() -> Iterator[Path]:
        nonlocal read
        for path in itertools.cycle(files):
            read += 1
            yield path

    results = predictor(workers=2).predict_each(endless(), batch_size=4)
    for count, (path, result) in enumerate(itertools.islice(results, 40), start=1):
        assert path == files[(count - 1) % len(files)]
        assert isinstance(result, Prediction)
        assert read <= count + 8
    threads = threading.active_count()
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= threads


def test_a_buffer_may_be_filled_again_as_soon_as_it_is_read(files: list[Path]) -> None:
    """One buffer that is filled with one frame after another."""
    frames = [np.asarray(Image.open(path)) for path in files[:9]]
    expected = [prediction.probabilities for prediction in predictor().predict(frames, batch_size=1)]  # type: ignore[union-attr]

    def one_buffer() -> Iterator[np.ndarray]:  # type: ignore[type-arg]
        buffer = np.empty((8, 8, 3), np.uint8)
        for frame in frames:
            buffer[:] = frame
            yield buffer

    probabilities = [prediction.probabilities for prediction in predictor().predict(one_buffer(), batch_size=2)]  # type: ignore[union-attr]
    for one, other in zip(probabilities, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_images_read_before_an_exception_are_predicted(files: list[Path], batch_size: int) -> None:
    def failing() -> Iterator[Path]:
        yield from files[:15]
        raise RuntimeError("the camera is gone")

    results: list[tuple[Path, object]] = []
    with pytest.raises(RuntimeError, match="the camera is gone"):
        results.extend(predictor(workers=2).predict_each(failing(), batch_size))
    assert [path for path, _ in results] == files[:15]
    assert all(isinstance(result, Prediction) for _, result in results)


def test_an_exception_of_the_network_ends_the_call_and_its_threads(files: list[Path]) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no kernel")

    broken = Predictor(Broken(), SPEC, PREPROCESS, CLASSES, workers=2)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no kernel"):
        broken.predict(files, 4)
    assert threading.active_count() == before


def test_a_predictor_can_be_copied(files: list[Path]) -> None:
    original = predictor()
    expected = original.predict(files[0])
    assert copy.deepcopy(original).predict(files[0]) == expected


def test_the_kind_of_output_is_that_of_the_network(files: list[Path]) -> None:
    spec = ModelSpec(NETWORK, (3, 8, 8), 3, "probabilities")
    model = nn.Sequential(network(), nn.Softmax(1))
    plain = Predictor(model, spec, PREPROCESS, CLASSES)
    limited = Predictor(model, spec, PREPROCESS, CLASSES, output=OutputStep(threshold=0.5))
    assert limited.predict(files[0]) == plain.predict(files[0])


class NotReentrant(nn.Module):
    """Fails when two threads are in its forward at once, as a network that writes to its buffers may."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.inside = False

    def forward(self, x: Tensor) -> Tensor:
        assert not self.inside
        self.inside = True
        try:
            threading.Event().wait(0.002)
            return self.inner(x)  # type: ignore[no-any-return]
        finally:
            self.inside = False


def test_several_threads_share_a_predictor(files: list[Path]) -> None:
    shared = Predictor(NotReentrant(), SPEC, PREPROCESS, CLASSES, workers=2)
    expected = [prediction.label for prediction in predictor().predict(files)]  # type: ignore[union-attr]
    with ThreadPoolExecutor(4) as pool:
        labels = list(pool.map(lambda _: [prediction.label for prediction in shared.predict(files, 5)], range(8)))  # type: ignore[union-attr]
    assert labels == [expected] * 8


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_temperature_and_threshold_are_one_step_for_both_kinds_of_network(kind: str) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.0, 0.05]])
    output = logits.softmax(1) if kind == "probabilities" else logits
    step = OutputStep(kind, temperature=2.0, threshold=0.5)
    assert torch.allclose(step(output), (logits / 2).softmax(1), atol=1e-6)
    assert torch.allclose(OutputStep(kind)(output), logits.softmax(1), atol=1e-6)
    assert [step.is_certain(value) for value in step(output).max(1).values.tolist()] == [True, False]
    values = torch.tensor([[3.5]])
    assert torch.equal(OutputStep("values", temperature=2.0)(values), values)


def test_an_artifact_keeps_its_output_step(tmp_path: Path, files: list[Path]) -> None:
    plain, tempered = tmp_path / "plain", tmp_path / "tempered"
    export_model(plain, network(), SPEC, PREPROCESS, CLASSES, {})
    export_model(tempered, network(), SPEC, PREPROCESS, CLASSES, {}, OutputStep(temperature=4.0, threshold=0.9))
    plain_file, tempered_file = (json.loads((folder / MANIFEST).read_text()) for folder in (plain, tempered))
    assert (plain_file["format"], "output" in plain_file) == (2, False)
    assert tempered_file["format"] == 3, "an earlier version must not ignore the temperature"
    add_metrics(tempered, {"test": {"accuracy": 0.5}})
    assert json.loads((tempered / MANIFEST).read_text())["format"] == 3
    predictors = load(plain), load(tempered)
    before, after = (each.predict(files[0])[0] for each in predictors)
    assert isinstance(before, Prediction)
    assert isinstance(after, Prediction)
    assert [each.output.is_certain(after.confidence) for each in predictors] == [True, False]
    logits = torch.tensor([before.probabilities]).log()
    assert after.probabilities == pytest.approx((logits / 4).softmax(1)[0].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"temperature": 0}, "output.temperature: expected a number > 0, found 0"),
        ({"temperature": "hot"}, "output.temperature: expected a number > 0, found 'hot'"),
        ({"threshold": 1.5}, r"output.threshold: expected a number in \[0, 1\], found 1.5"),
        ([1], "output: expected a mapping, found list"),
    ],
)
def test_a_wrong_output_step_is_refused(tmp_path: Path, output: object, message: str) -> None:
    export_model(tmp_path / "model", network(), SPEC, PREPROCESS, CLASSES, {})
    file = tmp_path / "model" / MANIFEST
    file.write_text(json.dumps(checksummed(json.loads(file.read_text()) | {"output": output})))
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path / "model")


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": -1}])
def test_a_predictor_needs_at_least_one_worker(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="workers: expected an integer >= 1, found "):
        predictor(**options)
