"""`Predictor`: answers that do not depend on how images come in, an error per image, and use by several threads."""

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


def predictor(**how: object) -> Predictor:
    return Predictor(network(), SPEC, PREPROCESS, CLASSES, **how)  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / f"{i:02}.png", noise(8, 8, 3, seed=i)) for i in range(21)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 21, 100, None])
def test_answers_do_not_depend_on_batches_or_threads(files: list[Path], workers: int, batch_size: int | None) -> None:
    expected = predictor(workers=1).predict(files, batch_size=21)
    found = predictor(workers=workers).predict(files, batch_size)
    assert [answer.label for answer in found if isinstance(answer, Prediction)] == [
        answer.label for answer in expected if isinstance(answer, Prediction)
    ]
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_every_form_of_an_image_has_the_same_answer(files: list[Path]) -> None:
    with Image.open(files[0]) as image:
        image.load()
    forms = [files[0], str(files[0]), files[0].read_bytes(), np.asarray(image), image]
    answers = predictor().predict(forms, batch_size=1)
    assert len(set(answers)) == 1
    assert predictor().predict(files[0]) == answers[:1]
    assert predictor().predict(iter(forms[:2]), batch_size=1) == answers[:2]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_image_has_its_answer_or_its_error(files: list[Path], tmp_path: Path, batch_size: int) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    mixed = [files[0], bad, files[1], tmp_path / "missing.png", b"", files[2]]
    found = list(predictor(workers=2).predict_each(mixed, batch_size))
    assert [image for image, _ in found] == mixed
    assert [isinstance(answer, SightlineError) for _, answer in found] == [False, True, False, True, True, False]
    for (_, answer), name in zip(found[1:5:2], ("bad.png", "missing.png"), strict=True):
        assert name in str(answer)
    assert "image 4" in str(found[4][1])
    alone = predictor().predict([files[0], files[1], files[2]], 1)
    for answer, other in zip([found[i][1] for i in (0, 2, 5)], alone, strict=True):
        assert isinstance(answer, Prediction)
        assert answer.label == other.label  # type: ignore[union-attr]
    with pytest.raises(SightlineError, match=r"bad\.png"):
        predictor().predict(mixed)


def test_endless_images_are_read_as_they_are_asked_for(files: list[Path]) -> None:
    """Two batches ahead at most: memory does not grow with what is left."""
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        for path in itertools.cycle(files):
            asked += 1
            yield path

    answers = predictor(workers=2).predict_each(endless(), batch_size=4)
    for count, (path, answer) in enumerate(itertools.islice(answers, 40), start=1):
        assert path == files[(count - 1) % len(files)]
        assert isinstance(answer, Prediction)
        assert asked <= count + 8
    threads = threading.active_count()
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= threads


def test_pixels_may_be_used_again_as_soon_as_they_are_taken(files: list[Path]) -> None:
    """Frames of one Pillow image, and one buffer that is filled again and again."""
    frames = [np.asarray(Image.open(path)) for path in files[:9]]
    expected = [answer.probabilities for answer in predictor().predict(frames, batch_size=1)]  # type: ignore[union-attr]

    def one_buffer() -> Iterator[np.ndarray]:  # type: ignore[type-arg]
        buffer = np.empty((8, 8, 3), np.uint8)
        for frame in frames:
            buffer[:] = frame
            yield buffer

    found = [answer.probabilities for answer in predictor().predict(one_buffer(), batch_size=2)]  # type: ignore[union-attr]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_what_was_taken_before_an_exception_is_answered(files: list[Path], batch_size: int) -> None:
    def failing() -> Iterator[Path]:
        yield from files[:15]
        raise RuntimeError("the camera is gone")

    answered: list[tuple[Path, object]] = []
    with pytest.raises(RuntimeError, match="the camera is gone"):
        answered.extend(predictor(workers=2).predict_each(failing(), batch_size))
    assert [path for path, _ in answered] == files[:15]
    assert all(isinstance(answer, Prediction) for _, answer in answered)


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
    own = predictor()
    expected = own.predict(files[0])
    assert copy.deepcopy(own).predict(files[0]) == expected


def test_the_kind_of_output_is_that_of_the_network(files: list[Path]) -> None:
    spec = ModelSpec(NETWORK, (3, 8, 8), 3, "probabilities")
    model = nn.Sequential(network(), nn.Softmax(1))
    plain = Predictor(model, spec, PREPROCESS, CLASSES)
    limited = Predictor(model, spec, PREPROCESS, CLASSES, output=OutputStep(threshold=0.5))
    assert limited.predict(files[0]) == plain.predict(files[0])


class NotReentrant(nn.Module):
    """Fails when two threads are in its forward at once, as a network with buffers of its own may."""

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
    expected = [answer.label for answer in predictor().predict(files)]  # type: ignore[union-attr]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [answer.label for answer in shared.predict(files, 5)], range(8)))  # type: ignore[union-attr]
    assert found == [expected] * 8


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_temperature_and_threshold_are_one_step_for_both_kinds_of_network(kind: str) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.0, 0.05]])
    given = logits.softmax(1) if kind == "probabilities" else logits
    step = OutputStep(kind, temperature=2.0, threshold=0.5)
    assert torch.allclose(step(given), (logits / 2).softmax(1), atol=1e-6)
    assert torch.allclose(OutputStep(kind)(given), logits.softmax(1), atol=1e-6)
    assert [step.is_certain(value) for value in step(given).max(1).values.tolist()] == [True, False]
    values = torch.tensor([[3.5]])
    assert torch.equal(OutputStep("values", temperature=2.0)(values), values)


def test_an_artifact_keeps_its_output_step(tmp_path: Path, files: list[Path]) -> None:
    plain, tempered = tmp_path / "plain", tmp_path / "tempered"
    export_model(plain, network(), SPEC, PREPROCESS, CLASSES, {})
    export_model(tempered, network(), SPEC, PREPROCESS, CLASSES, {}, OutputStep(temperature=4.0, threshold=0.9))
    plain_file, tempered_file = (json.loads((folder / MANIFEST).read_text()) for folder in (plain, tempered))
    assert (plain_file["format"], "output" in plain_file) == (2, False)
    assert tempered_file["format"] == 3, "an earlier version must not leave the temperature out"
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
        ({"temperature": 0}, "output.temperature: expected a number above 0, found 0"),
        ({"temperature": "hot"}, "output.temperature: expected a number above 0, found 'hot'"),
        ({"threshold": 1.5}, "output.threshold: expected a number from 0 to 1, found 1.5"),
        ([1], "output: expected keys and values, found list"),
    ],
)
def test_a_wrong_output_step_is_refused(tmp_path: Path, output: object, message: str) -> None:
    export_model(tmp_path / "model", network(), SPEC, PREPROCESS, CLASSES, {})
    file = tmp_path / "model" / MANIFEST
    file.write_text(json.dumps(checksummed(json.loads(file.read_text()) | {"output": output})))
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path / "model")


@pytest.mark.parametrize("how", [{"workers": 0}, {"workers": -1}])
def test_no_threads_are_no_predictor(how: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        predictor(**how)
