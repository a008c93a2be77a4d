"""Resolving dotted names to objects, and the names that a stored config may use."""

from __future__ import annotations

import collections
import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.core import locate
from sightline.core.errors import ConfigError, MissingExtraError
from sightline.core.locate import LOSSES, TRUSTED, import_optional, instantiate, prepare_call, resolve


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the import path; modules imported from it are removed from `sys.modules` afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write_package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code, encoding="utf-8")
    importlib.invalidate_caches()


def error_message(node: dict[str, Any], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        instantiate(node, key="module.network", **options)
    return str(caught.value)


# --- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch.nn.Conv2d", nn.Conv2d),
        ("torch.nn.modules.conv.Conv2d", nn.Conv2d),
        ("torch.nn.Module.forward", nn.Module.forward),
        ("collections.OrderedDict", collections.OrderedDict),
        ("os.path.join", os.path.join),
    ],
)
def test_a_dotted_name_is_the_object(name: str, expected: object) -> None:
    assert resolve(name, key="k") is expected


@pytest.mark.parametrize(
    "name", ["Conv2d", "", "torch..nn", "torch.nn.", ".nn", "torch nn.Conv2d", "os.system('x')", 3]
)
def test_a_value_that_is_not_a_dotted_name_is_an_error(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"^module\.loss: expected a dotted name such as 'torch.nn.Conv2d', found "):
        resolve(name, key="module.loss")


@pytest.mark.parametrize(
    ("name", "problem", "suggestion"),
    [
        ("torch.nnn.Conv2d", "'torch' has no attribute 'nnn'", "nn"),
        ("torch.nn.Conv2D", "'torch.nn' has no attribute 'Conv2D'", "Conv2d"),
        ("torch.nn.conv2d", "'torch.nn' has no attribute 'conv2d'", "Conv2d"),
        ("torch.optim.adam.Adamm", "'torch.optim.adam' has no attribute 'Adamm'", "Adam"),
        ("sightline.models.losses.FocalLos", "'sightline.models.losses' has no attribute 'FocalLos'", "FocalLoss"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name: str, problem: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(name, key="module.network")
    assert str(caught.value).startswith("module.network: ")
    assert problem in str(caught.value)
    assert f"Did you mean '{suggestion}'?" in str(caught.value)


def test_a_missing_package_is_an_error_with_the_key() -> None:
    with pytest.raises(MissingExtraError, match=r"^module\.optimizer: cannot load 'adabeleaf\.AdaBelief'.*'adabeleaf'"):
        resolve("adabeleaf.AdaBelief", key="module.optimizer")


def test_a_users_own_module_is_found(packages: Path) -> None:
    write_package(packages, "own_networks", "class Net:\n    class Inner: ...\n")
    (packages / "own_networks" / "deep.py").write_text("class Other: ...\n", encoding="utf-8")
    assert resolve("own_networks.Net.Inner", key="k").__qualname__ == "Net.Inner"
    assert resolve("own_networks.deep.Other", key="k").__name__ == "Other"


# --- optional packages


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(locate._EXTRAS, "sightline_absent", "vision")
    with pytest.raises(
        MissingExtraError, match=r"'sightline_absent' is not installed.*pip install 'sightline\[vision\]'"
    ):
        import_optional("sightline_absent.models")
    with pytest.raises(MissingExtraError, match=r"^module\.network: .*sightline\[vision\]"):
        resolve("sightline_absent.models.resnet18", key="module.network")


@pytest.mark.parametrize("error", ["RuntimeError", "ImportError", "OSError"])
def test_a_broken_package_names_its_extra(packages: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    # torchvision built for another torch: operator torchvision::nms does not exist
    write_package(packages, "broken_vision", f"raise {error}('operator does not exist')\n")
    monkeypatch.setitem(locate._EXTRAS, "broken_vision", "vision")
    with pytest.raises(MissingExtraError) as caught:
        resolve("broken_vision.models.resnet18", key="module.network")
    for part in ("module.network", "'broken_vision' is installed but cannot be imported", "operator does not exist"):
        assert part in str(caught.value)
    assert "sightline[vision]" in str(caught.value)


def test_a_package_with_a_missing_requirement_names_the_requirement(packages: Path) -> None:
    write_package(packages, "needy_package", "import sightline_absent_too\n")
    with pytest.raises(MissingExtraError, match="'needy_package' needs 'sightline_absent_too', which is not installed"):
        import_optional("needy_package")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("raise KeyError('no such key')\n", "KeyError"),
        ("raise RuntimeError('not today')\n", "RuntimeError"),
        ("from math import nonsense\n", "ImportError"),
    ],
)
def test_a_failed_import_of_user_code_is_an_error_with_its_cause(code: str, kind: str, packages: Path) -> None:
    write_package(packages, "own_package", code)
    with pytest.raises(ConfigError, match=rf"^module\.network: importing 'own_package' failed: {kind}: ."):
        resolve("own_package.Net", key="module.network")


def test_a_stored_loss_may_not_contain_a_network() -> None:
    node = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "timm.create_model", "pretrained": True}]}
    assert r"module.network._args_[0]._target_: 'timm.create_model' is not on the list" in error_message(
        node, allow=LOSSES
    )
    for name in ("torch.nn.functional.cross_entropy", "torch.nn.init.ones_", "sightline.models.networks.SmallCNN"):
        with pytest.raises(ConfigError, match="is not on the list"):
            resolve(name, key="module.loss", allow=LOSSES)
    for name in ("torch.nn.CrossEntropyLoss", "sightline.models.losses.FocalLoss"):
        assert resolve(name, key="module.loss", allow=LOSSES) is resolve(name, key="module.loss")


def test_every_named_extra_can_be_installed() -> None:
    from importlib.metadata import metadata

    assert set(locate._EXTRAS.values()) <= set(metadata("sightline").get_all("Provides-Extra") or ())


# --- nodes


def test_both_forms_of_a_node_make_the_same_object() -> None:
    nodes: list[dict[str, Any]] = [
        {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2},
        {"_target_": "torch.nn.Linear", "_args_": [3, 2]},
        {"_target_": nn.Linear, "_args_": [3], "out_features": 2},
        {"class": "torch.nn.Linear", "kwargs": {"in_features": 3, "out_features": 2}},
        {"class": nn.Linear, "kwargs": {"in_features": 3, "out_features": 2}},
    ]
    for node in nodes:
        layer = instantiate(node, key="k")
        assert type(layer) is nn.Linear
        assert layer.weight.shape == (2, 3)


def test_kwargs_may_be_missing_or_empty() -> None:
    for node in ({"class": nn.ReLU}, {"class": nn.ReLU, "kwargs": {}}, {"class": nn.ReLU, "kwargs": None}):
        assert isinstance(instantiate(node, key="k"), nn.ReLU)


def test_nodes_inside_a_node_are_made_first() -> None:
    flatten, linear = {"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.Linear", "_args_": [4, 2]}
    result = instantiate({"_target_": "torch.nn.Sequential", "_args_": [flatten, linear]}, key="k")
    assert [type(layer) for layer in result] == [nn.Flatten, nn.Linear]
    result = instantiate({"_target_": "builtins.dict", "a": {"b": [flatten, 1]}, "plain": {"x": 1}}, key="k")
    assert isinstance(result["a"]["b"][0], nn.Flatten)
    assert result["plain"] == {"x": 1}


def test_a_partial_node_makes_a_functools_partial() -> None:
    partial = instantiate({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}, key="k")
    assert isinstance(partial, functools.partial)
    assert partial(nn.Linear(1, 1).parameters()).defaults["lr"] == 0.5
    assert isinstance(instantiate({"_target_": "torch.nn.ReLU", "_partial_": False}, key="k"), nn.ReLU)


def test_a_node_is_not_changed() -> None:
    inner = {"_target_": "torch.nn.ReLU"}
    node = {"_target_": "torch.nn.Sequential", "_args_": [inner]}
    instantiate(node, key="k")
    assert node == {"_target_": "torch.nn.Sequential", "_args_": [inner]}
    assert inner == {"_target_": "torch.nn.ReLU"}


def test_prepare_call_returns_the_function_and_its_arguments() -> None:
    function, args, kwargs = prepare_call({"_target_": "torch.optim.SGD", "_args_": [1], "lr": 2}, key="k")
    assert (function, args, kwargs) == (torch.optim.SGD, [1], {"lr": 2})


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (
            {"_target_": "torch.nn.Linear", "in_feature": 3, "out_features": 2},
            "module.network.in_feature: torch.nn.Linear has no argument 'in_feature'. Did you mean 'in_features'?",
        ),
        ({"class": nn.Linear, "kwargs": {"in_feature": 3, "out_features": 2}}, "Did you mean 'in_features'?"),
        ({"_target_": "torch.nn.Linear", "in_features": 3}, "missing a required argument: 'out_features'"),
        ({"_target_": "torch.nn.Linear", "_args_": [3, 2], "in_features": 3}, "multiple values for argument"),
        ({"_target_": "torch.nn.ReLU", "_args_": [1, 2, 3]}, "too many positional arguments"),
        ({"class": "torch.nn.ReLU", "kwarg": {}}, "may have only 'kwargs' beside it; remove kwarg"),
        ({"target": "torch.nn.ReLU"}, "expected '_target_' with the dotted name of a class, found the keys target"),
        (
            {"_target_": "torch.pi"},
            "module.network._target_: expected a class or a function, but 'torch.pi' is a float",
        ),
        (
            {"_target_": "torch.nn.Relu"},
            "module.network._target_: 'torch.nn' has no attribute 'Relu'. Did you mean 'ReLU'?",
        ),
        (
            {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.ReLU", "inplce": True}]},
            "module.network._args_[0].inplce: torch.nn.ReLU has no argument 'inplce'",
        ),
        ({"_target_": "builtins.dict", "a": [{"b": {"_target_": "torch.nn.Relu"}}]}, "module.network.a[0].b._target_"),
    ],
)
def test_a_wrong_node_says_where_and_what(node: dict[str, Any], expected: str) -> None:
    message = error_message(node)
    assert message.startswith("module.network")
    assert expected in message


def value_error() -> None:
    raise ValueError("bad value")


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"_target_": value_error}, "bad value"),
        ({"_target_": "torch.nn.Linear", "in_features": "three", "out_features": 2}, "torch.nn.Linear"),
        ({"_target_": "torch.nn.Conv2d", "_args_": [3, 4, 3], "groups": 2}, "divisible by groups"),
        ({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": -2}, "negative dimension"),
    ],
)
def test_an_error_of_the_constructor_is_a_config_error(node: dict[str, Any], expected: str) -> None:
    message = error_message(node)
    assert message.startswith("module.network: ")
    assert expected in message


def test_a_partial_as_a_class_is_called() -> None:
    assert isinstance(instantiate({"class": functools.partial(nn.Linear, 3, 2)}, key="k"), nn.Linear)


# --- names that a stored config may use


@pytest.mark.rows("DB4")
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "logging.os.system",
        "importlib.import_module",
        "torch.os.system",
        "torch.nn.modules.os.system",
        "torch.serialization.os.system",
        "torch.nn.modules.module.functools.partial",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.Module.forward.__globals__.get",
        "torch.nn.Module.__subclasses__",
        "torch.utils.cpp_extension.load",
        "sightline.core.locate.importlib.import_module",
        "sightline.core.locate.instantiate",
        "sightline.core.locate.resolve",
        "sightline.core.files.os.unlink",
        "sightline.fit",
        "sightline.models.spec.locate.instantiate",
        "sightline.models.spec.torch.load",
    ],
)
def test_a_stored_config_may_not_name_a_function_that_runs_code(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.network: "):
        resolve(name, key="model.network", allow=TRUSTED)


@pytest.mark.rows("DB4")
@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system", "command": "touch {}"}]},
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.mkdir", "_partial_": True, "path": "{}"}]},
        {"class": "os.mkdir", "kwargs": {"path": "{}"}},
        {  # a builder that could build any object
            "_target_": "sightline.models.spec.build_model",
            "network": {"layers": [{"class": "os.mkdir", "kwargs": {"path": "{}"}}]},
            "shape": [1, 8, 8],
            "num_classes": 2,
        },
    ],
)
def test_a_stored_config_cannot_run_code(tmp_path: Path, node: dict[str, Any]) -> None:
    trace = tmp_path / "was_here"

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        return value.format(trace) if isinstance(value, str) else value

    with pytest.raises(ConfigError, match="not on the list"):
        instantiate(filled(node), key="model.network", allow=TRUSTED)
    assert not trace.exists()


class Payload:
    """Creates a directory when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.rows("DB4")
def test_a_stored_config_fetches_no_weights_to_unpickle(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "was_here"), tmp_path / "weights.pth")
    home = "torchvision.models._api"
    weights = {"url": f"file://{tmp_path}/weights.pth", "transforms": "", "meta": {}}
    node = {
        "_target_": f"{home}.WeightsEnum.get_state_dict",
        "self": {"_target_": f"{home}.Weights", **weights},
        "model_dir": str(tmp_path / "cache"),
        "file_name": "weights.pth",
        "progress": False,
        "weights_only": False,
    }
    with pytest.raises(ConfigError, match="not on the list"):
        instantiate(node, key="model.network", allow=TRUSTED)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.rows("DB4")
def test_a_package_that_is_not_allowed_is_not_imported(packages: Path) -> None:
    write_package(packages, "import_me_not", "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    with pytest.raises(ConfigError, match="not on the list"):
        resolve("import_me_not.Net", key="k", allow=TRUSTED)
    assert "import_me_not" not in sys.modules
    assert not (packages / "import_me_not" / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.Conv2d",
        "torch.nn.Sequential",
        "torch.nn.modules.activation.GELU",
        "sightline.models.networks.SmallCNN",
    ],
)
def test_networks_are_trusted(name: str) -> None:
    assert isinstance(resolve(name, key="k", allow=TRUSTED), type)


@pytest.mark.parametrize("name", ["torchvision.models.resnet18", "timm.create_model", "torchvision.models.ResNet"])
def test_networks_of_the_vision_libraries_are_trusted(name: str) -> None:
    importlib.import_module(name.partition(".")[0])
    assert callable(resolve(name, key="k", allow=TRUSTED))


def test_allow_adds_only_its_prefix(packages: Path) -> None:
    write_package(packages, "my_nets", "class Net: ...\n")
    write_package(packages, "my_nets_evil", "class Net: ...\n")
    allow = (*TRUSTED, "my_nets")
    assert resolve("my_nets.Net", key="k", allow=allow).__module__ == "my_nets"
    assert resolve("my_nets.Net", key="k", allow=("my_nets.Net",)).__module__ == "my_nets"
    for name in ("my_nets_evil.Net", "my_nets.nothing.Net", "os.system"):
        with pytest.raises(ConfigError):
            resolve(name, key="k", allow=allow)
    with pytest.raises(ConfigError, match="not on the list"):
        resolve("my_nets.Net", key="k", allow=TRUSTED)


def test_a_re_export_is_checked_by_its_defining_module(packages: Path) -> None:
    write_package(packages, "my_reexports", "from os import system\nfrom torch.nn import Linear\n")
    with pytest.raises(ConfigError, match="not on the list"):
        resolve("my_reexports.system", key="k", allow=("my_reexports",))
    assert resolve("my_reexports.Linear", key="k", allow=("my_reexports", "torch.nn")) is nn.Linear


@pytest.mark.parametrize("name", ["os.path.join", "collections.OrderedDict", "torch.optim.SGD", "json.loads"])
def test_the_prefix_suggested_by_the_error_works(name: str) -> None:
    with pytest.raises(ConfigError, match=r"allow=\('") as caught:
        resolve(name, key="k", allow=TRUSTED)
    prefix = str(caught.value).partition("allow=('")[2].partition("'")[0]
    assert resolve(name, key="k", allow=(*TRUSTED, prefix)) is resolve(name, key="k")


@pytest.mark.parametrize("old", ["data.augment.Flip", "data.geometry.RandomResizedCrop", "data.persample.PerSample"])
def test_an_earlier_name_of_an_augmentation_still_works_with_a_warning(old: str) -> None:
    with pytest.warns(FutureWarning, match=rf"'sightline\.{old}' was renamed to 'sightline\.data\.augment\."):
        target = resolve(f"sightline.{old}", key="data.augment.transforms")
    assert target.__module__.startswith("sightline.data.augment.")


@pytest.mark.parametrize(("old", "new"), locate.MOVED.items())
@pytest.mark.filterwarnings("ignore:.* was renamed to .*:FutureWarning")
def test_every_earlier_name_resolves_to_its_new_name(old: str, new: str) -> None:
    member = ""
    if (
        importlib.util.find_spec(new.rpartition(".")[0])
        and new.rpartition(".")[2].islower()
        and not old.endswith("load")
    ):
        module = importlib.import_module(new)
        member = next(f".{name}" for name, value in vars(module).items() if getattr(value, "__module__", "") == new)
    assert locate.qualified_name(resolve(f"{old}{member}", key="k")) == f"{new}{member}"


def test_earlier_names_in_a_checkpoint_are_replaced() -> None:
    saved = {"a": ["sightline.data.loader.BatchLoader", 3], "b": {"c": "sightline.optim.WarmupCosineLR"}, "d": "text"}
    assert locate.current_names(saved) == {
        "a": ["sightline.data.loading.loader.BatchLoader", 3],
        "b": {"c": "sightline.optim.schedules.WarmupCosineLR"},
        "d": "text",
    }
    assert locate.current_names("sightline.data.augment.colour.ColorJitter").endswith("augment.colour.ColorJitter")


def test_a_public_name_of_a_package_gives_no_warning() -> None:
    assert resolve("sightline.optim.WarmupCosineLR", key="k").__name__ == "WarmupCosineLR"
    with pytest.raises(ConfigError, match=r"no module|has no"):
        resolve("sightline.data.geometry.by_blocks", key="k")
