"""Starting from weights: files, tensors that must fit, expected preprocessing, and fine-tuning by one command."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sightline
from helpers.commands import Command, run_command
from helpers.images import noise, write_image
from sightline import cli
from sightline.compose.weights import build_from_weights, resolve_preprocess_keys
from sightline.config.schema import TrainConfig
from sightline.core.errors import ArtifactError, ConfigError, ModelError
from sightline.data.images.preprocess import Preprocess
from sightline.inference.artifact import export_model, load
from sightline.models.networks import SmallCNN
from sightline.models.pretrained import Weights, adapt_channels, load_weights_into, read_weights
from sightline.models.published import expected_preprocess
from sightline.models.spec import make_model_spec
from sightline.models.structure import find_first_convolution, find_head, parameter_depths

TIMM = {"_target_": "timm.create_model", "model_name": "test_resnet", "num_classes": "auto", "in_chans": "auto"}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A state dict with random values, so that a tensor loaded in the wrong place is noticed."""
    return {name: torch.randn_like(value) if value.is_floating_point() else value.clone() + 3
            for name, value in model.state_dict().items()}  # fmt: skip


def same(model: nn.Module, tensors: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    now = model.state_dict()
    return all(torch.equal(now[name], tensors[name]) == (name not in but) for name in now)


# --- files


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_every_kind_of_file_is_read(tmp_path: Path, suffix: str) -> None:
    tensors = weights_of(SmallCNN())
    file = tmp_path / f"weights{suffix}"
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    model = SmallCNN()
    loaded = load_weights_into(model, read_weights(file), (1, 8, 8))
    assert same(model, tensors)
    assert str(loaded) == f"weights: 26 of 26 tensors from weights{suffix}"


def wrapped(tensors: dict[str, Tensor], layout: str) -> dict[str, Any]:
    """The state dict within a checkpoint of this layout."""
    if layout.endswith("."):
        return {f"{layout}{name}": value for name, value in tensors.items()}
    if layout == "timm":
        old = {name: torch.zeros_like(value) for name, value in tensors.items()}
        return {"epoch": 3, "arch": "x", "args": argparse.Namespace(lr=1), "state_dict": old, "state_dict_ema": tensors}
    if layout == "lightning":
        return {"epoch": 3, "state_dict": wrapped(tensors, "model."), "optimizer_states": []}
    if layout == "averaged":
        return {"ema": {"n_averaged": torch.tensor(3), **wrapped(tensors, "module.")}, "model": None}
    return {layout: tensors}


@pytest.mark.parametrize(
    "layout", ["module.", "_orig_mod.module.", "model", "state_dict", "ema", "timm", "lightning", "averaged"]
)
def test_weights_are_found_in_checkpoints_of_other_trainers(tmp_path: Path, layout: str) -> None:
    tensors = weights_of(SmallCNN())
    torch.save(wrapped(tensors, layout), tmp_path / "a.pth")
    model = SmallCNN()
    load_weights_into(model, read_weights(tmp_path / "a.pth"), (1, 8, 8))
    assert same(model, tensors)


class Code:
    """An object that a pickle may contain and that is not a plain value."""


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: None, r"there is no file or run '.*weights\.pt'"),
        (lambda file: file.write_bytes(b""), "is damaged or not a weights file"),
        (lambda file: file.write_bytes(b"no weights at all"), r"' is damaged or not a weights file\.$"),
        (lambda file: Image.new("RGB", (4, 4)).save(file, "PNG"), r"' is damaged or not a weights file\.$"),
        (
            lambda file: torch.save({"a": Code()}, file),
            "contains Python objects besides its weights, and loading these would",
        ),
        (lambda file: torch.save([1, 2], file), r"expected tensors by name, found a list\. Save model\.state_dict\(\)"),
        (lambda file: torch.save({"epoch": 1}, file), r"expected tensors by name, found the keys epoch"),
        (lambda file: file.mkdir(), r"the directory '.*' is neither a run with a checkpoint nor an exported model"),
    ],
)
def test_a_file_without_weights_is_an_error(tmp_path: Path, write: Any, message: str) -> None:
    file = tmp_path / "weights.pt"
    write(file)
    config = TrainConfig.from_dict({"module": {"weights": str(file)}})
    with pytest.raises(ConfigError, match=rf"^module\.weights: .*{message}"):
        build_from_weights(config.module, (1, 8, 8), 10, "auto")


def test_a_truncated_safetensors_file_and_a_misspelt_name_are_errors(tmp_path: Path) -> None:
    save_file(weights_of(SmallCNN()), tmp_path / "small.safetensors")
    content = (tmp_path / "small.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"^module\.weights: '.*cut\.safetensors' is damaged"):
        read_weights(tmp_path / "cut.safetensors")
    with pytest.raises(ConfigError, match=r"Did you mean 'small\.safetensors'\?"):
        read_weights(tmp_path / "smal.safetensors")


# --- tensors that must fit


def test_a_head_for_other_classes_stays_new(tmp_path: Path) -> None:
    tensors = weights_of(SmallCNN(num_classes=1000))
    model = SmallCNN(num_classes=3)
    loaded = load_weights_into(model, Weights(tensors, "x.pth"), (1, 8, 8))
    assert same(model, {**tensors, **{name: torch.zeros(()) for name in loaded.new}}, but=loaded.new)
    assert str(loaded) == "weights: 24 of 26 tensors from x.pth; new: head.weight, head.bias"
    del tensors["head.bias"]  # a head is loaded completely or stays new
    assert load_weights_into(SmallCNN(num_classes=1000), Weights(tensors, ""), (1, 8, 8)).new == (
        "head.weight",
        "head.bias",
    )


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 4), (3, 2)])
def test_the_first_convolution_is_adapted_as_timm_does(before: int, after: int) -> None:
    tensors = weights_of(SmallCNN(before))
    model = SmallCNN(after)
    assert load_weights_into(model, Weights(tensors, ""), (after, 8, 8)).new == ()
    weight = model.state_dict()["features.0.weight"]
    if before == 3:
        adapt = importlib.import_module("timm.models").adapt_input_conv
        torch.testing.assert_close(weight, adapt(after, tensors["features.0.weight"]))
    else:  # equal channels give the same output as one gray channel
        torch.testing.assert_close(weight.sum(1, keepdim=True), tensors["features.0.weight"])


def test_other_differences_than_channels_are_not_adapted() -> None:
    assert adapt_channels(torch.zeros(8, 3, 3, 3), (8, 1, 5, 5)) is None
    assert adapt_channels(torch.zeros(8, 3), (8, 1)) is None


def test_counts_of_batches_may_be_missing() -> None:
    tensors = {name: value for name, value in weights_of(SmallCNN()).items() if "num_batches" not in name}
    model = SmallCNN()
    load_weights_into(model, Weights(tensors, ""), (1, 8, 8))
    assert torch.equal(model.features[1].running_mean, tensors["features.1.running_mean"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.4.weight": None}, r"25 of its 26 tensors.*Not in the file: features\.4\.weight\."),
        ({"more.weight": torch.zeros(1)}, r"Not in the network: more\.weight\."),
        ({"features.4.weight": torch.zeros(3)}, r"shape: features\.4\.weight \(3 in the file, 32 in the network\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(change: dict[str, Any], message: str) -> None:
    tensors = weights_of(SmallCNN()) | change
    tensors = {name: value for name, value in tensors.items() if value is not None}
    model = SmallCNN()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"^module\.weights: 'a\.pt' does not fit the network: .*{message}"):
        load_weights_into(model, Weights(tensors, "a.pt"), (1, 8, 8))
    assert same(model, before)


def test_a_head_with_another_input_size_does_not_fit() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))
    tensors = weights_of(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(9, 5)))
    with pytest.raises(ConfigError, match=r"shape: 2\.weight \(5 x 9 in the file, 3 x 8 in the network\)"):
        load_weights_into(model, Weights(tensors, "a.pt"), (1, 4, 4))


def test_loading_no_tensor_is_an_error() -> None:
    tensors = weights_of(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)))
    with pytest.raises(ConfigError, match=r"'a\.pt' does not fit the network: 0 of its 2 .*No tensor would be loaded"):
        load_weights_into(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Weights(tensors, "a.pt"), (1, 4, 4))


def test_a_network_with_a_versioned_state_dict_is_loaded_and_exported(tmp_path: Path) -> None:
    model = importlib.import_module("torchvision").models.mnasnet0_5(num_classes=3)
    tensors = weights_of(model)
    network = {"_target_": "torchvision.models.mnasnet0_5", "num_classes": 3}
    assert load_weights_into(model, Weights(tensors, "a.pt"), (3, 32, 32)).new == ()
    assert same(model, tensors)
    spec = make_model_spec(model, network, (3, 32, 32), 3)
    export_model(tmp_path / "exported", model, spec, Preprocess(32, 32, 3, (0.5,) * 3, (0.5,) * 3), "abc", {})
    assert same(load(tmp_path / "exported").model, tensors)


def test_an_exported_model_must_fit_the_network_that_is_passed(tmp_path: Path) -> None:
    def tied(tie: bool = True) -> nn.Sequential:
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        if tie:
            model[2].weight = model[1].weight
        return model

    model = tied()
    spec = make_model_spec(model, {"object": "own"}, (1, 2, 2), 2)
    export_model(tmp_path / "exported", model, spec, Preprocess(2, 2, 1, (0.5,), (0.5,)), "ab", {})
    again = load(tmp_path / "exported", model=tied()).model
    assert same(again, model.state_dict())
    with pytest.raises(ArtifactError, match=r"does not fit the network: missing tensors [12]\.weight"):
        load(tmp_path / "exported", model=tied(False))
    bigger = nn.Sequential(*tied(), nn.Identity(), nn.Linear(2, 2))
    with pytest.raises(ArtifactError, match=r"does not fit the network: missing tensors 5\.weight, 5\.bias"):
        load(tmp_path / "exported", model=bigger)


def renamed(tensors: dict[str, Tensor], pairs: dict[str, str]) -> dict[str, Tensor]:
    """The tensors, with each text in their names replaced."""
    for new, old in pairs.items():
        tensors = {name.replace(new, old): value for name, value in tensors.items()}
    return tensors


def test_old_tensor_names_of_torchvision_are_converted() -> None:
    models = importlib.import_module("torchvision").models
    dense = models.DenseNet(4, (1, 1), 8, num_classes=3)
    tensors = weights_of(dense)
    old = renamed(tensors, {f"layer1.{kind}{n}.": f"layer1.{kind}.{n}." for kind in ("norm", "conv") for n in (1, 2)})
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    load_weights_into(dense, Weights(old, "a.pt"), (3, 32, 32))
    assert same(dense, tensors)
    vit = models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)
    tensors = weights_of(vit)
    old = renamed(tensors, {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."})
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in old
    load_weights_into(vit, Weights(old, "a.pt"), (3, 32, 32))
    assert same(vit, tensors)


def test_weights_of_the_same_class_with_other_arguments_name_the_arguments(tmp_path: Path) -> None:
    network = {"_target_": "sightline.models.networks.SmallCNN", "width": 8, "num_classes": 10, "in_channels": "auto"}
    stored = {"module": {"network": network}, "data": {"preprocess": {"size": "auto"}}}
    torch.save({"model": SmallCNN(width=8).state_dict(), "config": stored}, tmp_path / "a.ckpt")
    config = TrainConfig.from_dict({"weights": str(tmp_path / "a.ckpt"), "module": {"network": {"width": 16}}})
    message = r"is from sightline\.models\.networks\.SmallCNN too, but with width=8 \(here 16"
    with pytest.raises(ConfigError, match=message):
        build_from_weights(config.module, (1, 8, 8), 10, "auto")


def test_the_network_of_a_timm_checkpoint_is_named_as_a_value_of_model(tmp_path: Path) -> None:
    content = {"arch": "resnet18", "state_dict": {"a": torch.zeros(1)}}
    torch.save({**content, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").network == "timm/resnet18"
    torch.save(content, tmp_path / "a.pth")  # as the ImageNet example of torch writes it
    assert read_weights(tmp_path / "a.pth").network == "timm/resnet18 or torchvision/resnet18"


def test_weights_of_another_network_are_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0 of its 26 tensors.*is from resnet18: set model= to that"):
        load_weights_into(SmallCNN(), Weights({"a": torch.zeros(1)}, "a.pth", "resnet18"), (1, 8, 8))
    import timm

    model = timm.create_model("test_resnet", num_classes=3)
    with pytest.raises(ConfigError, match=r"The file name suggests timm/resnet34\."):
        load_weights_into(model, Weights({"a": torch.zeros(1)}, "resnet34-b627a593.pth"), (3, 32, 32))


def test_tied_weights_may_be_stored_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[1].weight
    tensors = weights_of(model)
    del tensors["2.weight"]
    load_weights_into(model, Weights(tensors, ""), (1, 2, 2))
    assert torch.equal(model[2].weight, tensors["1.weight"])


# --- expected preprocessing


def resolved(**values: Any) -> Any:
    return resolve_preprocess_keys(TrainConfig.from_dict(values))


def test_published_weights_set_the_preprocessing_they_expect() -> None:
    preprocess = resolved(model="timm/resnet18", pretrained=True)
    assert (preprocess.size, preprocess.channels, preprocess.interpolation) == ([224, 224], 3, "bicubic")
    assert (preprocess.mean, preprocess.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    other = resolved(model="torchvision/resnet18", pretrained=True)
    assert (other.size, other.mean, other.interpolation) == ([224, 224], preprocess.mean, "bilinear")


def test_preprocessing_set_by_the_user_is_not_changed() -> None:
    values = {"size": 64, "mean": [0.5], "interpolation": "nearest", "resize": "crop"}
    preprocess = resolved(model="timm/resnet18", pretrained=True, data={"preprocess": values})
    assert (preprocess.size, preprocess.mean, preprocess.interpolation, preprocess.resize) == (
        64,
        [0.5],
        "nearest",
        "crop",
    )
    assert (preprocess.channels, preprocess.std) == (3, [0.229, 0.224, 0.225])


def test_gray_images_are_normalised_as_the_gray_of_the_colours() -> None:
    preprocess = resolved(model="timm/resnet18", pretrained=True, data={"preprocess": {"channels": 1}})
    assert preprocess.mean == pytest.approx([0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406])
    assert len(preprocess.std) == 1


@pytest.mark.parametrize("values", [{}, {"model": "timm/resnet18"}])
def test_without_weights_auto_stays(values: dict[str, Any]) -> None:
    assert resolved(**values) == TrainConfig().data.preprocess


def test_networks_without_published_weights_expect_no_preprocessing() -> None:
    assert expected_preprocess({"_target_": "timm.create_model", "model_name": "nonsense"}) == {}
    assert expected_preprocess({"_target_": "torchvision.models.nonsense"}) == {}
    assert expected_preprocess({"_target_": "sightline.models.networks.SmallCNN"}) == {}
    assert expected_preprocess({"layers": [{"_target_": "torch.nn.Flatten"}]}) == {}
    assert expected_preprocess({**TIMM, "img_size": 96})["size"] == 96


def test_a_run_of_sightline_sets_the_preprocessing_it_expects(digits_run: Path) -> None:
    manifest = json.loads((digits_run / "exported" / "sightline.json").read_text())["preprocess"]
    for place in (digits_run, digits_run / "exported", digits_run / "exported" / "model.safetensors"):
        preprocess = resolved(weights=str(place))
        assert (preprocess.size, preprocess.channels) == ([8, 8], 1)
        assert (preprocess.mean, preprocess.std, preprocess.interpolation) == (
            manifest["mean"],
            manifest["std"],
            "bilinear",
        )


def test_a_checkpoint_of_sightline_sets_the_preprocessing_it_expects(digits_run: Path, tmp_path: Path) -> None:
    manifest = json.loads((digits_run / "exported" / "sightline.json").read_text())["preprocess"]
    values = {"model": "timm/resnet18", "weights": str(digits_run / "checkpoints" / "best.ckpt")}
    preprocess = resolved(**values)
    assert (preprocess.size, preprocess.channels, preprocess.mean) == ([8, 8], 1, manifest["mean"])
    run = tmp_path / "run"  # an unfinished run: the values in its config, and none of the published weights
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(digits_run / "checkpoints" / "best.ckpt", run / "checkpoints")
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=False)
    content["config"]["data"]["preprocess"] |= {"size": 48, "mean": [0.25], "std": "auto"}
    torch.save(content, run / "checkpoints" / "best.ckpt")
    for place in (run, run / "checkpoints" / "best.ckpt"):
        preprocess = resolved(model="timm/resnet18", weights=str(place))
        assert (preprocess.size, preprocess.mean, preprocess.std) == (48, [0.25], "auto")


def test_missing_weights_are_an_error_before_decoding_even_if_preprocessing_is_set() -> None:
    complete = {"size": 8, "channels": 1, "mean": [0.5], "std": [0.5], "interpolation": "bilinear"}
    with pytest.raises(ConfigError, match=r"^module\.weights: there is no file or run 'nowhere\.pth'"):
        resolved(weights="nowhere.pth", data={"preprocess": complete})


# --- the structure of a network


def test_a_normalisation_after_the_last_layer_belongs_to_the_head() -> None:
    body = [nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8)]
    assert find_head(nn.Sequential(*body, nn.Linear(8, 10), nn.BatchNorm1d(10)), (1, 4, 4)) == ("3", "4")
    assert find_head(nn.Sequential(*body), (1, 4, 4)) == ("1", "2")
    assert find_head(nn.Sequential(*body[:2], nn.Unflatten(1, (2, 4)), nn.Flatten()), (1, 4, 4)) == ("1",)
    wide = nn.Sequential(nn.Conv2d(1, 7, 3, padding=1), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.AvgPool1d(7))
    assert find_head(wide, (1, 4, 4)) == ()  # 4 outputs, but 4 is the width of the map, not a number of channels


def test_only_a_network_of_timm_is_asked_for_its_classifier() -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.top = nn.Linear(16, 8), nn.Linear(8, 3)

        def get_classifier(self, name: str) -> nn.Module:
            raise AssertionError(name)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.top(self.body(x.flatten(1)))
            return output

    assert find_head(Custom(), (1, 4, 4)) == ("top",)


@pytest.mark.parametrize(
    ("name", "head", "first", "top"),
    [
        ("timm/resnet18", ("fc",), "conv1", 9),
        ("torchvision/resnet18", ("fc",), "conv1", 9),
        ("torchvision/squeezenet1_1", ("classifier.1",), "features.0", 9),
    ],
)
def test_head_and_depths(name: str, head: tuple[str, ...], first: str, top: int) -> None:
    library, _, inner = name.partition("/")
    if library == "timm":
        model = importlib.import_module("timm").create_model(inner, num_classes=3)
    else:
        model = getattr(importlib.import_module("torchvision").models, inner)(num_classes=3)
    shape = (3, 64, 64)
    assert find_head(model, shape) == head
    assert find_first_convolution(model, shape) == first
    depths = parameter_depths(model, shape)
    assert depths[f"{head[0]}.weight"] == top == max(depths.values())
    assert depths[f"{first}.weight"] == 0
    assert set(depths) == {item for item, _ in model.named_parameters()}


def test_the_depths_of_a_custom_network() -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.top = nn.Linear(8, 3)  # registered first, run last
            self.second, self.norm, self.first = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.top(self.norm(self.second(self.first(x.flatten(1) * self.scale))))
            return output

    depths = parameter_depths(Custom(), (1, 2, 2))
    assert [depths[f"{name}.weight"] for name in ("first", "second", "norm", "top")] == [0, 1, 1, 2]
    assert depths["scale"] == 0


# --- on the command line


def write_colour_images(folder: Path, count: int = 201, side: int = 40) -> Path:
    """Writes images of three classes that differ in colour."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
        pixels[:, :, number % 3] += 100
        file = folder / "abc"[number % 3] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images`, weights for 1000 classes in `w.safetensors`, and the run `tuned` of one command."""
    timm = importlib.import_module("timm")
    folder = tmp_path_factory.mktemp("tuned")
    write_colour_images(folder / "images")
    torch.manual_seed(7)
    save_file(timm.create_model("test_resnet", num_classes=1000).state_dict(), folder / "w.safetensors")
    done = run_command(
        "train", "data=folder", "data.root=images", "model=timm/test_resnet", "weights=w.safetensors",
        "module.freeze_epochs=1", "module.layer_decay=0.7", "module.decay_1d=false", "lr_scheduler=cosine",
        "trainer.max_epochs=2", "data.preprocess.size=32", "run.name=tuned", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def test_one_command_fine_tunes_a_network_of_timm(tuned: Path) -> None:
    lines = (tuned / "stderr").read_text().splitlines()
    line = next(line for line in lines if line.startswith("weights: "))
    assert line.endswith("tensors from w.safetensors; new: fc.weight, fc.bias")
    manifest = json.loads((tuned / "runs/tuned/exported/sightline.json").read_text())
    assert manifest["preprocess"]["mean"] == manifest["preprocess"]["std"] == [0.5, 0.5, 0.5]  # those of the network
    assert manifest["preprocess"]["interpolation"] == "bilinear"
    assert "pretrained" not in manifest["model"]["network"]
    groups = torch.load(tuned / "runs/tuned/checkpoints/last.ckpt", weights_only=True)["optimizer"]["param_groups"]
    assert [group["name"] for group in groups[:2]] == ["head", "head, no decay"]
    assert groups[0]["initial_lr"] * 0.7 == pytest.approx(groups[2]["initial_lr"])


def test_frozen_layers_equal_the_file_and_are_trained_afterwards(tuned: Path) -> None:
    weights = load_file(tuned / "w.safetensors")
    config = {
        "data": {"source": "folder", "root": str(tuned / "images"), "preprocess": {"size": 32}},
        "model": "timm/test_resnet", "weights": str(tuned / "w.safetensors"),
        "module": {"freeze_epochs": 1}, "trainer": {"max_epochs": 2, "progress": False},
        "run": {"dir": str(tuned / "other")},
    }  # fmt: skip
    after: list[dict[str, Tensor]] = []

    class Record(sightline.Callback):
        def on_epoch_end(self, trainer: Any, record: dict[str, float]) -> None:
            after.append({name: value.clone() for name, value in trainer.state.model.state_dict().items()})

    sightline.fit(config, callbacks=[Record()])
    body = [name for name in weights if not name.startswith("fc.")]
    assert all(torch.equal(after[0][name], weights[name]) for name in body)
    assert not any(torch.equal(after[1][name], weights[name]) for name in body)


def test_the_model_predicts_without_its_data_its_weights_and_internet_access(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    run = shutil.copytree(tuned / "runs/tuned", tmp_path / "run")
    image = shutil.copy(tuned / "images/b/001.png", tmp_path)
    for name in ("images", "w.safetensors"):
        (tuned / name).rename(tuned / f"{name}.away")
    try:
        predictor = sightline.load(run)
        assert predictor.predict([image])[0].label in ("a", "b", "c")
        assert predictor.preprocess.shape == (3, 32, 32)
    finally:
        for name in ("images", "w.safetensors"):
            (tuned / f"{name}.away").rename(tuned / name)


def test_a_resumed_run_does_not_need_its_weights_file(tuned: Path, tmp_path: Path) -> None:
    save_file(weights_of(SmallCNN(num_classes=5)), tmp_path / "w.safetensors")
    config = {
        "weights": str(tmp_path / "w.safetensors"), "module": {"freeze": ["features.0"]},
        "trainer": {"max_epochs": 1, "progress": False}, "run": {"dir": str(tmp_path), "name": "a"},
    }  # fmt: skip
    first = sightline.fit(config)
    (tmp_path / "w.safetensors").unlink()
    assert first.run is not None
    shutil.rmtree(first.run / "exported")
    again = sightline.resume(first.run).fit()
    assert again.metrics == first.metrics


def test_a_run_starts_from_another_run(digits_run: Path, tmp_path: Path) -> None:
    expected = load_file(digits_run / "exported" / "model.safetensors")
    for place in (digits_run, digits_run / "exported", digits_run / "checkpoints" / "best.ckpt"):
        config = TrainConfig.from_dict({"weights": str(place)})
        model, _, loaded = build_from_weights(config.module, (1, 8, 8), 10, "auto")
        assert loaded is not None
        assert loaded.new == ()
        assert same(model, expected)
    copied = shutil.copytree(digits_run / "exported", tmp_path / "exported")
    save_file({name: value + 1 for name, value in expected.items()}, copied / "model.safetensors")
    config = TrainConfig.from_dict({"weights": str(copied)})
    with pytest.raises(ConfigError, match=r"^module\.weights: .* is not the file the model was exported with"):
        build_from_weights(config.module, (1, 8, 8), 10, "auto")


@pytest.mark.slow
def test_without_internet_access_the_error_names_two_alternatives_at_once(tmp_path: Path, sightline: Command) -> None:
    # an address that refuses connections at once simulates a missing network on any machine
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    nowhere |= {"HF_HOME": str(tmp_path / "cache"), "no_proxy": "", "NO_PROXY": ""}
    for seed, name in enumerate(("cat", "dog")):
        write_image(tmp_path / "images" / name / "0.png", noise(8, 8, 3, seed))
    root = f"data.root={tmp_path / 'images'}"
    done = sightline("train", "model=timm/resnet10t", "pretrained=true", root, env=nowhere)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("sightline: module.pretrained: the weights timm/resnet10t.c3_in1k are not on this ")
    assert "and could not be downloaded: " in done.stderr
    assert "weights=FILE, or run this once on a machine with internet access" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_failed_download_of_torchvision_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    models = importlib.import_module("torchvision").models

    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no such host")

    monkeypatch.setattr(models.SqueezeNet1_1_Weights, "get_state_dict", fail)
    module = TrainConfig.from_dict({"model": "torchvision/squeezenet1_1", "pretrained": True}).module
    message = (
        r"^module\.pretrained: the weights torchvision/squeezenet1_1 \(IMAGENET1K_V1\) .*: <urlopen error no such host>"
    )
    with pytest.raises(ConfigError, match=message):
        build_from_weights(module, (3, 64, 64), 3, "auto")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"published only for networks of timm and torchvision .*weights=FILE"),
        ({"model": "timm/test_mambaout"}, "timm publishes no weights for 'test_mambaout'"),
        ({"model": "timm/resnt18"}, r"timm publishes no weights for 'resnt18'\. Did you mean 'resnet18"),
        ({"model": "torchvision/googlenet"}, r"of torchvision/googlenet need .*Choose another network, such as torchv"),
        ({"model": "torchvision/inception_v3"}, r"of torchvision/inception_v3 .*such as timm/inception_v3"),
    ],
)
def test_pretrained_without_published_weights_is_an_error(values: dict[str, Any], message: str) -> None:
    config = TrainConfig.from_dict({"pretrained": True, **values})
    with pytest.raises(ConfigError, match=rf"^module\.pretrained: .*{message}"):
        build_from_weights(config.module, (3, 64, 64), 3, "auto")


def test_a_wrong_tag_of_timm_is_an_error_with_the_nearest() -> None:
    values = {"model": "timm/resnet18.a9_in1k", "pretrained": True}
    expected = (
        r"^module\.network: timm .* 'resnet18\.a9_in1k'\. Did you mean 'resnet18\.a\d_in1k'\? There are: resnet18\."
    )
    with pytest.raises(ConfigError, match=expected):
        resolved(**values)
    with pytest.raises(ConfigError, match=expected):
        build_from_weights(TrainConfig.from_dict(values).module, (3, 64, 64), 3, "auto")


def test_several_outputs_in_training_are_an_error(tmp_path: Path) -> None:
    config = {
        "model": "torchvision/googlenet", "data": {"preprocess": {"size": 32, "channels": 3}},
        "module": {"network": {"init_weights": False, "aux_logits": True}}, "run": {"dir": str(tmp_path)},
    }  # fmt: skip
    with pytest.raises(ModelError, match=r"^module\.network: in training mode.* GoogLeNetOutputs.*aux_logits: false"):
        sightline.assemble(config)
    config["module"] = {"network": {"init_weights": False}}  # `model` turns the auxiliary heads off by default
    sightline.assemble(config)


@pytest.mark.parametrize("network", [{}, {"model": "torchvision/squeezenet1_1"}, {"model": "timm/test_resnet"}])
def test_a_head_is_not_trained_on_random_weights(network: dict[str, Any]) -> None:
    config = TrainConfig.from_dict({**network, "module": {"freeze_epochs": 1}})
    with pytest.raises(ConfigError, match=r"^module\.freeze_epochs: .*random weights.*pretrained=true or weights=FILE"):
        build_from_weights(config.module, (3, 64, 64), 3, "auto")


def test_a_custom_network_may_be_frozen_without_weights() -> None:
    config = TrainConfig.from_dict({"model": "test_pretrained.SmallCNN", "module": {"freeze_epochs": 1}})
    assert build_from_weights(config.module, (1, 8, 8), 10, "auto")[2] is None


@pytest.mark.parametrize("key", [{"pretrained": True}, {"weights": "w.pt"}])
def test_a_network_that_is_passed_takes_no_other_weights(key: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^module\.{next(iter(key))}: the model was passed in from Python"):
        sightline.assemble({**key, "run": {"dir": str(tmp_path)}}, model=SmallCNN())


@pytest.mark.parametrize("command", ["train", "summary", "show"])
def test_missing_weights_are_an_error_before_the_data_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_colour_images(tmp_path / "images", 6)
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "data=folder", "data.root=images", "weights=nowhere.pth"])
    assert caught.value.code == 2
    assert "module.weights: there is no file or run 'nowhere.pth'." in capsys.readouterr().err


def test_downloaded_weights_are_loaded_and_the_head_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download of torchvision is replaced by a function that returns a state dict."""
    models = importlib.import_module("torchvision").models
    state = weights_of(models.squeezenet1_1(num_classes=1000))
    passed: dict[str, Any] = {}
    monkeypatch.setattr(
        models.SqueezeNet1_1_Weights, "get_state_dict", lambda _, **options: passed.update(options) or state
    )
    module = TrainConfig.from_dict({"model": "torchvision/squeezenet1_1", "pretrained": True}).module
    model, spec, loaded = build_from_weights(module, (3, 64, 64), 3, "auto")
    assert loaded is not None
    assert loaded.new == ("classifier.1.weight", "classifier.1.bias")
    assert torch.equal(model.state_dict()["features.0.weight"], state["features.0.weight"])
    assert spec.network == {"_target_": "torchvision.models.squeezenet1_1", "num_classes": 3}
    assert passed["weights_only"] is True  # otherwise the file could run code
    assert passed["check_hash"] is True
