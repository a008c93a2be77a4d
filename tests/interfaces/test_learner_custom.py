"""Learners with custom steps in both published forms, and the other methods and functions of the interface."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import transforms

import sightline.learner as tf
from helpers.learner_problem import COUNT, SIZE, X, Y, files, loader, network, same, train, weights, with_test_split
from sightline.core.errors import DataError, ImageError, MissingExtraError, ModelError


class Earlier(tf.BaseModel):
    """A trainer as in the tutorial: the step receives everything as arguments."""

    def __train_func__(self, data, optimizer, loss_fn, train_metrics, running_loss, epoch, batch_num):  # type: ignore[no-untyped-def]
        optimizer.zero_grad()
        x, y = (Variable(part.cuda() if self.cuda else part) for part in data)
        outputs = self.model(x)
        loss = loss_fn(outputs, y)
        loss.backward()
        optimizer.step()
        running_loss.add_(loss.cpu() * x.size(0))
        for metric in train_metrics:
            metric.update(outputs.cpu().data, y.cpu().data)

    def __eval_function__(self, data, metrics):  # type: ignore[no-untyped-def]
        x, y = (Variable(part) for part in data)
        for metric in metrics:
            metric.update(self.model(x).cpu().data, y.cpu().data)

    def __predict_func__(self, inputs):  # type: ignore[no-untyped-def]
        return self.model(Variable(inputs))


class Later(tf.BaseLearner):
    """A trainer as in later versions: the step reads attributes of the learner."""

    def __train_func__(self, data: Any) -> None:
        self.optimizer.zero_grad()
        x, y = data
        outputs = self.model(x)
        loss = self.loss_fn(outputs, y)
        loss.backward()
        self.optimizer.step()
        self.train_running_loss = self.train_running_loss + (loss.cpu() * len(y))
        for metric in self.train_metrics:
            metric.update(outputs, y)

    def __eval_function__(self, data: Any) -> None:
        for metric in self.test_metrics:
            metric.update(self.model(data[0]), data[1])

    def __predict_func__(self, inputs: Any) -> Any:
        return self.model(inputs)


class OtherNames(Earlier):
    """The method names in the tutorial's prose, with parameters in another order and only some of them."""

    def __train_function__(self, epoch, running_loss, data, loss_fn, optimizer):  # type: ignore[no-untyped-def]
        super().__train_func__(data, optimizer, loss_fn, self.train_metrics, running_loss, epoch, 0)

    def __eval_func__(self, batch, measured):  # type: ignore[no-untyped-def]
        super().__eval_function__(batch, measured)

    def __predict_function__(self, inputs):  # type: ignore[no-untyped-def]
        return super().__predict_func__(inputs)


@pytest.mark.rows("B19", "BB5")
@pytest.mark.parametrize("kind", [Earlier, Later, OtherNames, tf.StandardLearner])
def test_every_published_form_of_a_trainer_gives_the_same_result(tmp_path: Path, kind: type[tf.BaseModel]) -> None:
    standard, learner = tf.StandardModel(network()), kind(network())
    for each in (standard, learner):
        train(each, tmp_path / type(each).__name__ / str(each is standard), 2, **with_test_split())
    assert same(learner.model.state_dict(), standard.model.state_dict())
    expected, history = (each.get_train_history() for each in (standard, learner))
    assert history["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)
    assert {name: values for name, values in history.items() if "Acc" in name} == {
        name: values for name, values in expected.items() if "Acc" in name
    }
    assert torch.equal(learner.predict(X), standard.predict(X))


@pytest.mark.rows("BB2")
@pytest.mark.parametrize("kind", [Earlier, Later])
def test_the_running_loss_keeps_no_graph_between_steps(tmp_path: Path, kind: type[tf.BaseModel]) -> None:
    alive: list[int] = []

    class Heavy(torch.autograd.Function):
        """Keeps an object alive as long as the graph."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.tracked = Tracked()
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0]

    class Tracked:
        """Counts its instances."""

        count = 0

        def __init__(self) -> None:
            Tracked.count += 1

        def __del__(self) -> None:
            Tracked.count -= 1

    class Net(nn.Module):
        """A network that records how many of its graphs are alive."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            alive.append(Tracked.count)
            return Heavy.apply(self.inner(x))

    gc.collect()
    learner = kind(Net())
    train(learner, tmp_path, 2)
    assert max(alive) <= 1
    assert not learner.train_running_loss.requires_grad


@pytest.mark.rows("B19")
def test_a_custom_step_trains_on_batches_of_any_form(tmp_path: Path) -> None:
    class Autoencoder(tf.BaseModel):
        """A trainer without targets."""

        def __train_func__(self, x, optimizer, loss_fn, train_metrics, running_loss, epoch, batch_num):  # type: ignore[no-untyped-def]
            optimizer.zero_grad()
            outputs = self.model(x)
            loss = loss_fn(outputs, x)
            loss.backward()
            optimizer.step()
            running_loss.add_(loss * len(x))
            for metric in train_metrics:
                metric.update(outputs, x)

    learner = Autoencoder(network(X.shape[1]))
    batches = list(X.split(SIZE))
    train(learner, tmp_path, 20, train_loader=batches, loss_fn=nn.MSELoss(), train_metrics=[tf.MSE()])
    history = learner.get_train_history()
    assert history["train_MSE"][-1] < history["train_MSE"][0]
    assert history["train_MSE"] == pytest.approx(history["train_loss"], rel=1e-4)


@pytest.mark.rows("B26")
def test_a_later_learner_with_a_custom_train_method_calls_the_loop(tmp_path: Path) -> None:
    class CustomTrain(Later):
        """Sets the attributes that its step needs and passes the rest on."""

        def train(self, train_loader, train_metrics, optimizer, **options):  # type: ignore[no-untyped-def, override]
            self.optimizer, self.loss_fn = optimizer, nn.CrossEntropyLoss()
            super().__train_loop__(train_loader, train_metrics, None, None, **options)

    learner = CustomTrain(network())
    optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    quiet = {"display_metrics": False, "save_metrics": False, "batch_log": False}
    learner.train(loader(), [tf.Accuracy()], optimizer, num_epochs=1, model_dir=tmp_path, **quiet)
    assert files(tmp_path) == ["all_models/model_1.pth"]


@pytest.mark.rows("B19")
def test_a_missing_step_or_an_unknown_parameter_is_named(tmp_path: Path) -> None:
    class Wrong(tf.StandardModel):
        """Its step has an unknown parameter."""

        def __train_func__(self, data, optimiser, loss_fn):  # type: ignore[no-untyped-def, override]
            raise AssertionError

    with pytest.raises(tf.LearnerError, match=r"BaseModel has no __train_func__\(self, data, optimizer, loss_fn"):
        train(tf.BaseModel(network()), tmp_path)
    with pytest.raises(tf.LearnerError, match=r"unknown parameter 'optimiser'\. Did you mean 'optimizer'\?"):
        train(Wrong(network()), tmp_path)
    with pytest.raises(tf.LearnerError, match="has no __eval_function__"):
        tf.BaseModel(network()).evaluate(loader(), [tf.Accuracy()])
    with pytest.raises(tf.LearnerError, match="has no __predict_func__"):
        tf.BaseModel(network()).predict(X)
    with pytest.raises(tf.LearnerError, match=r"expected a torch\.nn\.Module, found a list"):
        tf.StandardModel([nn.Linear(1, 1)])
    with pytest.raises(DataError, match="a batch of the loader is a Tensor; StandardModel expects pairs"):
        train(tf.StandardModel(network()), tmp_path / "b", train_loader=[X])


@pytest.mark.rows("B26")
def test_validation_uses_its_own_step_if_there_is_one(tmp_path: Path) -> None:
    class Both(Later):
        """Records which step was called."""

        steps: list[str] = []  # noqa: RUF012

        def __eval_function__(self, data: Any) -> None:
            self.steps.append("test")
            super().__eval_function__(data)

        def __val_function__(self, data: Any) -> None:
            self.steps.append("val")
            for metric in self.val_metrics:
                metric.update(self.model(data[0]), data[1])

    validation = {"val_loader": [(X, Y)], "val_metrics": [tf.Accuracy("v")]}
    learner = Both(network())
    train(learner, tmp_path / "a", 1, test_loader=[(X, Y)], test_metrics=[tf.Accuracy("t")], **validation)
    assert learner.steps == ["test", "val"]
    plain = Later(network())  # its only step gets the metrics of the current split
    train(plain, tmp_path / "b", 1, test_loader=[(X[:9], Y[:9])], test_metrics=[tf.Accuracy("t")], **validation)
    history = plain.get_train_history()
    assert history["val_v"] == learner.get_train_history()["val_v"]
    assert history["test_t"] == [plain.evaluate([(X[:9], Y[:9])], [tf.Accuracy()])["Accuracy"]]
    assert plain.validate([(X, Y)], [tf.Accuracy()])["Accuracy"] == history["val_v"][0]


# --- data


class GrayImages(torch.utils.data.Dataset[Any]):
    """Gray images with a Compose of transforms, like torchvision's MNIST."""

    def __init__(self, *values: float):
        steps = [transforms.Resize(8), transforms.ToTensor(), transforms.Normalize(values, values)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = np.full((8, 8), 20 * index, dtype=np.uint8)
        return self.transform(Image.fromarray(pixels)), index % 3


@pytest.mark.rows("B03", "BB1")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_normalize_of_three_channels_for_one_is_reported_with_the_fix(tmp_path: Path, workers: int) -> None:
    def learner() -> tf.StandardModel:
        return tf.StandardModel(nn.Sequential(tf.Flatten(), nn.Linear(64, 3)))

    wrong, right = (DataLoader(GrayImages(*values), 4, num_workers=workers) for values in ((0.5,) * 3, (0.5,)))
    for call in (
        lambda: train(learner(), tmp_path / "wrong", train_loader=wrong),
        lambda: learner().evaluate(wrong, [tf.Accuracy()]),
    ):
        with pytest.raises(
            DataError, match=r"Normalize has .* 3 values, .* 1 channel.* Normalize\(\(0\.5,\), \(0\.5,\)\)"
        ):
            call()
    train(learner(), tmp_path / "right", 1, train_loader=right)


def test_another_error_of_a_transform_is_not_changed(tmp_path: Path) -> None:
    class Broken(torch.utils.data.Dataset[Any]):
        """Fails in broadcasting, without a Normalize."""

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(1, 4, 4).add_(torch.zeros(3, 4, 4)), 0

    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape") as raised:
        train(tf.StandardModel(network()), tmp_path, train_loader=DataLoader(Broken(), 2))
    assert not isinstance(raised.value, DataError)


@pytest.mark.rows("B04")
def test_flatten_keeps_the_batch_dimension() -> None:
    assert tf.Flatten()(torch.zeros(5, 2, 3, 4)).shape == (5, 24)


# --- prediction


@pytest.mark.rows("B20", "BB8")
def test_predictions_keep_their_shape_and_can_be_used_in_training() -> None:
    net = network().append(nn.Dropout(0.5))
    learner, later = tf.StandardModel(net), tf.StandardLearner(net)
    expected = net[:3](X).detach()
    outputs = learner.predict(loader(shuffle=False))
    assert isinstance(outputs, list)
    assert len(outputs) == COUNT
    assert torch.equal(later.predict(loader(shuffle=False)), torch.stack(outputs))
    assert torch.allclose(torch.stack(outputs), expected, atol=1e-6)
    assert learner.predict(X[:1]).shape == (1, 3)
    assert later.predict(X[:1]).shape == (3,)
    unlabelled = DataLoader(TensorDataset(X), SIZE)
    assert torch.equal(torch.stack(learner.predict(unlabelled)), torch.stack(outputs))
    assert torch.allclose(later.predict(X, apply_softmax=True).sum(1), torch.ones(COUNT))
    output = learner.predict(X)
    assert not output.requires_grad
    output.add_(1)
    (output * torch.ones(3, requires_grad=True)).sum().backward()  # not an inference tensor
    assert net.training


# --- summary


@pytest.mark.rows("B07")
def test_the_summary_of_the_tutorials_network() -> None:
    hidden = [part for _ in range(2) for part in (nn.Linear(100, 100), nn.ReLU())]
    net = nn.Sequential(tf.Flatten(), nn.Linear(784, 100), nn.ReLU(), *hidden, nn.Linear(100, 10))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    lines = tf.StandardModel(net).summary((1, 28, 28)).splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert [name for name in rows if "_" in name] == [
        *("Flatten_1", "Linear_1", "ReLU_1", "Linear_2", "ReLU_2", "Linear_3", "ReLU_3", "Linear_4")
    ]
    first = ["Linear_1", "[1,", "784]", "[1,", "100]", "78,500", "78,400"]
    assert rows["Linear_1"].split() == first
    assert "Total Parameters: 99,710" in lines
    assert "Total Multiply Adds: 99,400" in lines
    assert "Linear : 4 layers" in lines[-1]
    assert same(before, dict(net.state_dict()))
    assert net.training


@pytest.mark.rows("B07", "B28")
def test_a_summary_names_the_layer_that_does_not_fit_and_takes_types_and_a_width(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), tf.Flatten(), nn.Linear(4 * 26 * 26, 2))
    learner = tf.StandardModel(net)
    with pytest.raises(ModelError, match=r"layer '0', Conv2d, got 3 x 28 x 28 but needs 1 channel"):
        learner.summary((3, 28, 28))
    with pytest.raises(tf.LearnerError, match="input_sizes: expected the size of one input"):
        learner.summary(28)
    with pytest.raises(tf.LearnerError, match="input_types: expected a dtype"):
        learner.summary((1, 28, 28), "float")
    text_learner = tf.StandardLearner(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)))
    assert "Total Parameters: 78" in text_learner.summary((5,), torch.LongTensor)
    with pytest.raises(ModelError, match=r"inputs of \[\[4\]\]: layer '2', Linear, got 16 but needs 20 features"):
        text_learner.summary((4,), torch.LongTensor)
    lazy = tf.StandardLearner(nn.Sequential(nn.LazyLinear(3), nn.ReLU()))
    assert "Total Parameters: 15" in lazy.summary((4,))
    assert isinstance(lazy.model[0], nn.LazyLinear)  # it has not seen its first batch yet
    narrow, wide = (learner.summary((1, 28, 28), item_length=width).splitlines()[1] for width in (18, 40))
    assert narrow.index("Input Size") == 18
    assert wide.index("Input Size") == 40
    learner.summary((1, 28, 28), tensorboard_log=str(tmp_path / "graph"))
    assert list((tmp_path / "graph").iterdir())


# --- the rest


@pytest.mark.rows("B01")
def test_every_name_exists_and_a_wrong_one_is_reported_with_the_nearest() -> None:
    import sightline.learner as module

    assert all(hasattr(module, name) for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=r"no attribute 'StandartModel'\. Did you mean 'StandardModel'"):
        module.StandartModel  # noqa: B018


@pytest.mark.rows("B28", "BB6")
def test_onnx_names_the_packages_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="onnx"):
        tf.StandardModel(network()).to_onnx((6,), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.rows("B30")
def test_load_image_returns_the_input_of_a_network(tmp_path: Path) -> None:
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, 5:15] = (255, 0, 51)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    full = tf.load_image(tmp_path / "a.png")
    assert full.shape == (3, 10, 20)
    assert torch.allclose(full[:, 0, 10], torch.tensor([1.0, -1.0, -0.6]))
    centre = tf.load_image(str(tmp_path / "a.png"), target_size=10, mean=0, std=1)
    assert centre.shape == (3, 10, 10)
    assert bool((centre[0] == 1).all())
    gray = tf.load_image(tmp_path / "a.png", grayscale=True, target_size=(5, 8), to_tensor=False)
    assert (gray.mode, gray.size) == ("L", (8, 5))
    (tmp_path / "b.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"b\.png"):
        tf.load_image(tmp_path / "b.png")


@pytest.mark.rows("B30")
def test_imagenet_names_and_one_hot() -> None:
    assert tf.decode_imagenet(0) == tf.decode_imagenet(torch.tensor(0)) == "tench"
    assert tf.decode_imagenet(999) == "toilet tissue"
    with pytest.raises(tf.LearnerError, match=r"class_index in \[0, 999\], found 1000"):
        tf.decode_imagenet(1000)
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(tf.one_hot(torch.tensor([[1.0], [0.0]]), 3), expected)
    assert tf.one_hot(torch.tensor([1, 0]), 3).dtype == torch.int64
    with pytest.raises(tf.LearnerError, match=r"indices in \[0, 2\], found 0 to 3"):
        tf.one_hot(torch.tensor([0, 3]), 3)


def test_the_weights_of_an_epoch_are_saved_at_its_end(tmp_path: Path) -> None:
    learner = tf.StandardModel(network())
    train(learner, tmp_path, 2)
    assert same(weights(tmp_path / "all_models" / "model_1.pth"), learner.model.state_dict())
    assert not same(weights(tmp_path / "all_models" / "model_0.pth"), learner.model.state_dict())


@pytest.mark.rows("B28", "BB6")
def test_onnx_gives_the_same_outputs_as_the_network_for_any_batch_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), tf.Flatten(), nn.Linear(4 * 36, 3))
    learner = tf.StandardModel(net)
    learner.to_onnx((1, 8, 8), tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for size in (1, 5):
        x = torch.randn(size, 1, 8, 8)
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(output), learner.predict(x), atol=1e-5)
