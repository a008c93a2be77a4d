"""The config schema: an error names the key, the value found, what is expected and the nearest valid name."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.commands import python
from sightline.config.schema import TrainConfig, walk
from sightline.config.typed import describe
from sightline.core.errors import ConfigError

KEYS = [key for key, _ in walk()]


def nested(key: str, value: Any) -> dict[str, Any]:
    """`nested("data.val", 1)` is `{"data": {"val": 1}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part] if isinstance(values, dict) else getattr(values, part)
    return values


def make(key: str, value: Any) -> Any:
    """The value the config holds at `key` after it was set to `value`."""
    return at(TrainConfig.from_dict(nested(key, value)), key)


def error_message(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(values)
    return str(caught.value)


def test_the_schema_is_checked_without_torch() -> None:
    # so that a typo is reported at once: importing torch takes more than a second
    code = (
        "import sys; from sightline.config.schema import TrainConfig; TrainConfig.from_dict({'seed': 1});"
        "print(sum(name.partition('.')[0] in ('torch', 'numpy', 'hydra') for name in sys.modules))"
    )
    assert python(code) == "0\n"


def test_an_empty_config_is_the_default_one() -> None:
    assert TrainConfig.from_dict({}) == TrainConfig()
    assert TrainConfig.from_dict({"data": {}, "trainer": {}}) == TrainConfig()


def test_every_key_is_documented_and_its_default_passes_its_own_check() -> None:
    for key, field in walk():
        assert field.metadata["doc"].endswith("."), key
        assert make(key, at(TrainConfig().to_dict(), key)) == at(TrainConfig(), key)


def test_the_defaults_of_one_config_are_not_shared_with_the_next() -> None:
    for one, other in ((TrainConfig(), TrainConfig()), (TrainConfig.from_dict({}), TrainConfig.from_dict({}))):
        for node in ("network", "loss", "optimizer", "lr_scheduler"):
            assert getattr(one.module, node) == getattr(other.module, node)
            assert getattr(one.module, node) is not getattr(other.module, node), node
    one.to_dict()["module"]["loss"]["_target_"] = "changed"
    assert one.module.loss["_target_"] == "torch.nn.CrossEntropyLoss"


def test_the_values_are_copied() -> None:
    values = {"module": {"network": {"layers": [{"_target_": "torch.nn.Flatten"}]}}}
    before = copy.deepcopy(values)
    config = TrainConfig.from_dict(values)
    config.module.network["layers"].append("changed")
    assert values == before


# --- round trip


def nodes(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    arguments = st.dictionaries(
        st.sampled_from(["lr", "momentum", "width"]), st.integers(0, 9) | st.floats(0, 1) | st.just("auto"), max_size=3
    )
    return st.builds(lambda name, more: {"_target_": name, **more}, st.sampled_from(names), arguments)


PROBABILITY = st.floats(0, 1)
SHARE = st.floats(0, 0.99) | st.integers(0, 10**6)
TEXT = st.text(max_size=20)
NUMBERS = st.lists(st.floats(0.001, 10), min_size=1, max_size=3)
PART = st.lists(st.floats(0.001, 1), min_size=2, max_size=2).map(sorted)
RATIO = st.lists(st.floats(0.001, 100), min_size=2, max_size=2).map(sorted)
LAYERS = st.lists(nodes("torch.nn.Flatten", "torch.nn.Linear"), min_size=1, max_size=3)
SCHEDULER = nodes("torch.optim.lr_scheduler.StepLR")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**63 - 1),
    "run.dir": TEXT,
    "run.name": st.none() | TEXT,
    "run.requeue": st.none() | TEXT,
    "data.source": st.sampled_from(["auto", "folder", "csv", "parquet", "idx", "npz"]),
    "data.root": st.none() | TEXT,
    "data.csv": st.none() | TEXT,
    "data.images": st.none() | TEXT,
    "data.image_column": st.none() | TEXT,
    "data.label_column": st.none() | TEXT,
    "data.sampler": st.just("shuffle"),
    "data.target": st.just("class"),  # regression forbids the keys about classes: test_regression
    "data.split_column": st.none() | TEXT,
    "data.group_column": st.none() | TEXT,
    "data.dataset": st.none(),  # a name needs another source: tested below
    "data.download": st.booleans(),
    "data.on_bad": st.sampled_from(["error", "skip"]),
    "data.store": st.sampled_from(["auto", "pixels", "encoded"]),
    "data.cache": st.booleans(),
    "data.cache_dir": st.none() | TEXT,
    "data.cache_limit": st.floats(0, 1e6) | st.just(math.inf),
    "data.workers": st.just("auto") | st.integers(0, 256),
    "data.prefetch": st.integers(0, 100),
    "data.classes": st.none() | st.integers(2, 1000) | st.lists(TEXT, min_size=2, max_size=4, unique=True),
    "data.val": SHARE,
    "data.test": SHARE,
    "data.batch_size": st.integers(1, 10**6),
    "data.drop_last": st.booleans(),
    "data.eval_batch_size": st.just("auto") | st.integers(1, 10**6),
    "data.preprocess.size": st.just("auto")
    | st.integers(1, 4096)
    | st.lists(st.integers(1, 4096), min_size=1, max_size=2),
    "data.preprocess.channels": st.sampled_from(["auto", 1, 3]),
    "data.preprocess.resize": st.sampled_from(["auto", "stretch", "crop", "pad"]),
    "data.preprocess.crop_pct": st.just("auto") | st.none(),  # a number forbids "pad": test_finetuning
    "data.preprocess.interpolation": st.sampled_from(["auto", "nearest", "bilinear", "bicubic", "lanczos"]),
    "data.preprocess.background": st.integers(0, 255),
    "data.preprocess.mean": st.just("auto") | NUMBERS,
    "data.preprocess.std": st.just("auto") | NUMBERS,
    "data.augment.flip": PROBABILITY,
    "data.augment.vertical_flip": PROBABILITY,
    "data.augment.shift": st.integers(0, 100),
    "data.augment.crop": st.none() | PART,
    "data.augment.crop_ratio": RATIO,
    "data.augment.rotate": st.floats(0, 180),
    "data.augment.translate": PROBABILITY,
    "data.augment.scale": RATIO,
    "data.augment.shear": st.floats(0, 89),
    "data.augment.brightness": st.floats(0, 10),
    "data.augment.contrast": st.floats(0, 10),
    "data.augment.saturation": st.floats(0, 10),
    "data.augment.policy": st.sampled_from([None, "trivial", "rand"]),
    "data.augment.rand_ops": st.integers(1, 20),
    "data.augment.rand_magnitude": st.integers(0, 30),
    "data.augment.erase": PROBABILITY,
    "data.augment.cutout": st.integers(0, 10**6),
    "data.augment.transforms": st.lists(nodes("torchvision.transforms.v2.RandomInvert"), max_size=2),
    "module.network": nodes("sightline.models.networks.SmallCNN") | LAYERS.map(lambda layers: {"layers": layers}),
    "module.outputs": st.sampled_from(["auto", "logits", "probabilities"]),
    "module.loss": nodes("torch.nn.CrossEntropyLoss"),
    "module.optimizer": nodes("torch.optim.SGD"),
    "module.lr_scheduler": st.none() | SCHEDULER | st.lists(SCHEDULER, min_size=1, max_size=2),
    "model": st.none(),
    "pretrained": st.none(),
    "weights": st.none(),
    "module.weights": st.none() | TEXT,
    "module.pretrained": st.just(False),
    "module.freeze_epochs": st.just(0),
    "module.weights_by": st.just("name"),
    "module.freeze": st.lists(TEXT, max_size=2),
    "module.freeze_statistics": st.booleans(),
    "module.layer_decay": st.floats(0.01, 1),
    "module.head_lr": st.none() | st.floats(1e-6, 1),
    "module.param_groups": st.lists(st.just({"match": "head.*", "lr": 0.1}), max_size=2),
    "module.decay_1d": st.booleans(),
    "module.class_weights": st.none()
    | st.just("auto")
    | st.lists(st.floats(0, 100), min_size=1, max_size=3).filter(any),
    "module.mixup": st.floats(0, 10),
    "module.cutmix": st.floats(0, 10),
    "module.mix_probability": PROBABILITY,
    "module.ema": st.none() | st.floats(0.01, 0.9999),
    "module.ema_warmup": st.booleans(),
    "module.top_k": st.lists(st.integers(1, 10), max_size=2, unique=True),
    "module.per_class": st.booleans(),
    "module.metrics": st.just({}),
    "module.monitor": TEXT,
    "module.monitor_mode": st.sampled_from(["auto", "min", "max"]),
    "trainer.max_epochs": st.integers(1, 10**6),
    "trainer.eval_every": st.integers(1, 100),
    "trainer.log_every": st.integers(1, 100),
    "trainer.checkpoint_every": st.none() | st.integers(1, 100),
    "trainer.checkpoint_minutes": st.none() | st.floats(0.1, 100),
    "trainer.keep_checkpoints": st.integers(1, 9),
    "trainer.keep_every": st.none() | st.integers(1, 9),
    "trainer.divergence_threshold": st.none() | st.floats(0.1, 100),
    "trainer.device": TEXT,
    "trainer.threads": st.none() | st.just("auto") | st.integers(1, 64),
    "trainer.precision": st.sampled_from(["fp32", "bf16", "fp16"]),
    "trainer.accumulate_grad_batches": st.integers(1, 64),
    "trainer.gradient_clip_val": st.none() | st.floats(0.001, 100),
    "trainer.gradient_clip_algorithm": st.sampled_from(["norm", "value"]),
    "trainer.channels_last": st.booleans() | st.just("auto"),
    "trainer.compile": st.booleans() | st.just("auto"),
    "trainer.early_stopping.patience": st.none() | st.integers(1, 100),
    "trainer.early_stopping.min_delta": st.floats(0, 1),
    "trainer.early_stopping.monitor": st.none() | TEXT,
    "trainer.early_stopping.monitor_mode": st.sampled_from(["auto", "min", "max"]),
    "trainer.progress": st.booleans(),
    "trainer.deterministic": st.booleans(),
}


@settings(max_examples=100)
@given(data=st.data(), keys=st.lists(st.sampled_from(sorted(VALUES)), max_size=6, unique=True))
def test_any_valid_config_survives_to_dict_and_json(data: st.DataObject, keys: list[str]) -> None:
    values: dict[str, Any] = {}
    changes = {key: data.draw(VALUES[key], label=key) for key in keys}
    for key, value in changes.items():
        group = values
        *path, name = key.split(".")
        for part in path:
            group = group.setdefault(part, {})
        group[name] = value
    config = TrainConfig.from_dict(values)
    for key, value in changes.items():
        assert at(config, key) == value
    plain = config.to_dict()
    assert TrainConfig.from_dict(plain) == config
    assert TrainConfig.from_dict(json.loads(json.dumps(plain))) == config


def test_the_round_trip_covers_every_key() -> None:
    assert set(VALUES) == set(KEYS)


# --- names


@pytest.mark.parametrize(
    ("values", "wrong", "right"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"trainr": {}}, "trainr", "trainer"),
        ({"data": {"batchsize": 1}}, "data.batchsize", "batch_size"),
        ({"data": {"preprocess": {"chanels": 1}}}, "data.preprocess.chanels", "channels"),
        ({"data": {"augment": {"Flip": 0.5}}}, "data.augment.Flip", "flip"),
        ({"trainer": {"epochs": 3}}, "trainer.epochs", "max_epochs"),
        ({"module": {"optimiser": {}}}, "module.optimiser", "optimizer"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(values: dict[str, Any], wrong: str, right: str) -> None:
    message = error_message(values)
    assert message.startswith(f"unknown key '{wrong}'.")
    suggestion = message.partition("Did you mean '")[2].partition("'")[0]
    assert suggestion.rpartition(".")[2] == right
    assert "Valid keys" in message


GROUPS = sorted({"", *(key.rpartition(".")[0] for key in KEYS)})


@pytest.mark.parametrize("group", GROUPS)
def test_a_key_of_another_group_suggests_its_full_name(group: str) -> None:
    inside = {key[len(group) + 1 if group else 0 :].partition(".")[0] for key in KEYS if key.startswith(group)}
    for key in KEYS:
        name = key.rpartition(".")[2]
        if name in inside:
            continue
        wrong = f"{group}.{name}" if group else name
        suggestion = error_message(nested(wrong, 1)).partition("Did you mean '")[2].partition("'")[0]
        assert suggestion in KEYS, wrong
        assert suggestion.rpartition(".")[2] == name, wrong


def test_a_name_without_a_near_match_lists_the_valid_keys() -> None:
    message = error_message({"data": {"qqqqqq": 1}})
    assert "Did you mean" not in message
    assert "batch_size" in message


def test_names_that_are_valid_elsewhere_can_be_suggested() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'experiment'"):
        TrainConfig.from_dict({"experimnt": 1}, also=("experiment",))


def test_a_key_that_is_not_a_string_is_an_unknown_key() -> None:
    assert error_message({1: 2}).startswith("unknown key '1'.")


# --- types


@pytest.mark.parametrize(
    ("key", "value", "expected", "found"),
    [
        ("seed", "1", "an integer", "the string '1'"),
        ("seed", 1.0, "an integer", "the number 1.0"),
        ("seed", None, "an integer", "null"),
        ("seed", True, "an integer", "the boolean True"),
        ("trainer.progress", 1, "true or false", "the integer 1"),
        ("trainer.progress", "yes", "true or false", "the string 'yes'"),
        ("trainer.checkpoint_every", 1.5, "an integer or null", "the number 1.5"),
        ("data.augment.flip", "0.1", "a number", "the string '0.1'"),
        ("data.augment.flip", True, "a number", "the boolean True"),
        ("data.augment.flip", [0.1], "a number", "the list [0.1]"),
        ("data.root", [3], "a string or null", "the list [3]"),
        ("run.dir", {"a": 1}, "a string", "the mapping {'a': 1}"),
        ("data.preprocess.channels", 2, "'auto' or 1 or 3", "the integer 2"),
        ("data.preprocess.channels", True, "'auto' or 1 or 3", "the boolean True"),
        ("data.preprocess.size", 28.0, "'auto' or an integer or a list of integers", "the number 28.0"),
        ("data.preprocess.mean", "none", "'auto' or a list of numbers", "the string 'none'"),
        ("data.classes", 2.5, "an integer or a list of strings or null", "the number 2.5"),
        (
            "module.loss",
            "torch.nn.CrossEntropyLoss",
            "a node with '_target_'",
            "the string 'torch.nn.CrossEntropyLoss'",
        ),
        ("module.lr_scheduler", 3, "a node with '_target_' or a list of nodes or null", "the integer 3"),
        ("data", None, "a mapping", "null"),
        ("data.augment", [1], "a mapping", "the list [1]"),
        ("trainer", "fast", "a mapping", "the string 'fast'"),
    ],
)
def test_a_wrong_type_says_what_was_found_and_what_is_expected(key: str, value: Any, expected: str, found: str) -> None:
    assert error_message(nested(key, value)) == f"{key}: expected {expected}, found {found}."


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("data.preprocess.size", [28, "x"], r"data\.preprocess\.size\[1\]: expected an integer"),
        ("data.preprocess.mean", [0.5, None], r"data\.preprocess\.mean\[1\]: expected a number"),
        ("data.classes", ["cat", True], r"data\.classes\[1\]: expected a string"),
        ("module.lr_scheduler", ["StepLR"], r"module\.lr_scheduler\[0\]: expected a node"),
    ],
)
def test_a_wrong_entry_of_a_list_is_an_error_with_its_index(key: str, value: Any, place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        TrainConfig.from_dict(nested(key, value))


def test_the_config_must_be_a_mapping() -> None:
    message = error_message([1, 2])
    assert "expected a mapping, found the list [1, 2]" in message
    assert not message.startswith(":")


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("data.source", "folders", "folder"),
        ("data.preprocess.resize", "Crop", "crop"),
        ("data.preprocess.interpolation", "bilinaer", "bilinear"),
        ("data.on_bad", "skp", "skip"),
        ("data.store", "pixel", "pixels"),
        ("data.augment.policy", "trivail", "trivial"),
        ("data.workers", "aut", "auto"),
        ("module.outputs", "logit", "logits"),
        ("module.monitor_mode", "MAX", "max"),
    ],
)
def test_a_misspelt_choice_gets_the_nearest_one(key: str, value: str, right: str) -> None:
    message = error_message(nested(key, value))
    assert message.startswith(f"{key}: expected ")
    assert f"found the string '{value}'" in message
    assert message.endswith(f"Did you mean '{right}'?")


def test_an_integer_is_accepted_for_a_number() -> None:
    value = make("data.augment.flip", 1)
    assert type(value) is float
    assert value == 1.0
    assert make("data.preprocess.std", [1, 0.5]) == [1.0, 0.5]


def test_classes_written_as_numbers_are_names() -> None:
    # YAML reads the class folders 0 and 1 as numbers; a boolean is a mistake, not a name
    assert make("data.classes", [0, 1, 2]) == ["0", "1", "2"]
    assert make("data.classes", ["cat", 7]) == ["cat", "7"]
    assert make("data.classes", 10) == 10


def test_a_path_becomes_a_string_and_a_tuple_a_list() -> None:
    assert make("data.root", Path("data") / "mnist") == str(Path("data") / "mnist")
    assert make("data.preprocess.size", (28, 32)) == [28, 32]


def test_a_transform_is_a_node() -> None:
    node = {"_target_": "torchvision.transforms.v2.RandomInvert", "p": 1.0}
    assert make("data.augment.transforms", [node]) == [node]
    assert "transforms[1]: expected a node with '_target_'" in error_message(
        nested("data.augment.transforms", [node, {"p": 1}])
    )
    assert "data.augment.transforms: expected a list of nodes" in error_message(nested("data.augment.transforms", node))


def test_a_torchvision_dataset_and_its_source_need_each_other() -> None:
    assert make("data", {"source": "torchvision", "dataset": "CIFAR10"}).dataset == "CIFAR10"
    assert "such as data.dataset=CIFAR10" in error_message({"data": {"source": "torchvision"}})
    assert "'CIFAR10' needs data.source=torchvision" in error_message({"data": {"dataset": "CIFAR10"}})


# --- ranges


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, ">= 0, found -1"),
        ("data.batch_size", 0, ">= 1, found 0"),
        ("data.eval_batch_size", 0, ">= 1"),
        ("data.val", -0.1, ">= 0"),
        ("data.test", -1, ">= 0"),
        ("data.val", 1.5, "a fraction < 1 or an integer number of images, found 1.5"),
        ("data.test", 2.5, "a fraction < 1 or an integer number of images"),
        ("data.augment.shift", -1, ">= 0"),
        ("data.augment.flip", 1.1, r"a probability in \[0, 1\], found 1.1"),
        ("data.augment.flip", -0.1, r"a probability in \[0, 1\]"),
        ("data.augment.flip", math.nan, r"a probability in \[0, 1\]"),
        ("data.augment.vertical_flip", 2, r"a probability in \[0, 1\]"),
        ("data.augment.crop", [0, 1], r"two numbers \[min, max\] with 0 < min <= max <= 1, found \[0.0, 1.0\]"),
        ("data.augment.crop", [0.5, 0.2], "two numbers"),
        ("data.augment.crop", [0.5, 1.1], "max <= 1"),
        ("data.augment.crop", [0.5], "two numbers"),
        ("data.augment.crop", [math.nan, 1], "two numbers"),
        ("data.augment.crop_ratio", [0.0, 1], "two numbers"),
        ("data.augment.crop_ratio", [2, 1], "two numbers"),
        ("data.augment.scale", [-1, 1], "two numbers"),
        ("data.augment.scale", [1, 1, 1], "two numbers"),
        ("data.augment.rotate", 181, r"a number in \[0, 180\], found 181"),
        ("data.augment.rotate", -1, r"a number in \[0, 180\]"),
        ("data.augment.translate", 1.5, r"a number in \[0, 1\]"),
        ("data.augment.shear", 90, r"a number in \[0, 89\]"),
        ("data.augment.brightness", -0.1, r"a number in \[0, 10\]"),
        ("data.augment.contrast", math.nan, r"a number in \[0, 10\]"),
        ("data.augment.saturation", 11, r"a number in \[0, 10\]"),
        ("data.augment.erase", 2, r"a probability in \[0, 1\]"),
        ("data.augment.cutout", -1, "an integer >= 0"),
        ("data.augment.rand_ops", 0, r"an integer in \[1, 20\]"),
        ("data.augment.rand_magnitude", 31, r"an integer in \[0, 30\]"),
        ("data.workers", -1, ">= 0, found -1"),
        ("data.prefetch", -1, ">= 0"),
        ("data.cache_limit", -0.5, ">= 0"),
        ("data.cache_limit", math.nan, "found nan"),
        ("data.preprocess.background", -1, ">= 0"),
        ("data.preprocess.background", 256, r"an integer in \[0, 255\], found 256"),
        ("data.preprocess.size", 0, "pixels, each >= 1, found 0"),
        ("data.preprocess.size", [28, -1], "pixels, each >= 1"),
        ("data.preprocess.size", [1, 2, 3], r"one side or \[height, width\]"),
        ("data.preprocess.size", [], r"one side or \[height, width\]"),
        ("data.preprocess.std", [0.5, 0.0], "numbers > 0"),
        ("data.preprocess.std", [-1], "numbers > 0"),
        ("trainer.max_epochs", 0, ">= 1"),
        ("trainer.eval_every", 0, ">= 1"),
        ("trainer.log_every", 0, ">= 1"),
        ("trainer.checkpoint_every", 0, ">= 1"),
        ("trainer.checkpoint_minutes", 0, "> 0, or null"),
        ("trainer.keep_checkpoints", 0, ">= 1"),
        ("trainer.keep_every", 0, ">= 1"),
        ("trainer.divergence_threshold", -1, "> 0, or null"),
        ("trainer.threads", 0, ">= 1"),
    ],
)
def test_a_number_out_of_range_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key.replace('.', '[.]')}: .*{message}"):
        TrainConfig.from_dict(nested(key, value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["data.val", "data.test", "data.preprocess.mean", "data.preprocess.std"])
def test_a_number_that_is_not_finite_is_refused(key: str, value: float) -> None:
    # YAML has .nan and .inf; a deviation of NaN would make every image NaN
    with pytest.raises(ConfigError, match=f"^{key.replace('.', '[.]')}"):
        TrainConfig.from_dict(nested(key, [value] if "preprocess" in key else value))


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.val", 0), ("data.val", 800), ("data.val", 0.999), ("data.augment.flip", 1), ("data.preprocess.size", [1])],
)
def test_the_ends_of_a_range_are_valid(key: str, value: Any) -> None:
    assert make(key, value) == value


def test_the_embedded_digits_have_no_directory() -> None:
    assert error_message({"data": {"source": "digits", "root": "data"}}).startswith("data.root: ")


# --- nodes


@pytest.mark.parametrize("key", ["module.loss", "module.optimizer", "module.lr_scheduler", "module.network"])
def test_arguments_without_a_target_change_those_of_the_default_node(key: str) -> None:
    default = at(TrainConfig(), key)
    assert make(key, {"extra": 1}) == {**default, "extra": 1}
    assert make(key, {"_target_": "my.Own"}) == {"_target_": "my.Own"}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"layers": []}, r"module\.network\.layers: expected a list of nodes"),
        ({"layers": "conv"}, r"module\.network\.layers: expected a list of nodes.*the string 'conv'"),
        ({"layers": [{"_target_": "a.B"}, {"kwargs": {}}]}, r"module\.network\.layers\[1\]: expected a node"),
        ({"layers": ["torch.nn.ReLU"]}, r"module\.network\.layers\[0\]: expected a node.*the string 'torch.nn.ReLU'"),
        (
            {"layers": [{"_target_": "a.B"}], "_target_": "a.B"},
            r"no other key may be set beside 'layers'; remove _target_",
        ),
    ],
)
def test_an_invalid_layer_list_is_refused(network: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict({"module": {"network": network}})


def test_a_list_of_schedulers_is_checked_one_by_one() -> None:
    good = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2}
    assert make("module.lr_scheduler", [good, good]) == [good, good]
    assert make("module.lr_scheduler", None) is None
    with pytest.raises(ConfigError, match=r"module\.lr_scheduler\[1\]: expected a node with '_target_'"):
        TrainConfig.from_dict({"module": {"lr_scheduler": [good, {"step_size": 2}]}})


def test_a_layer_list_may_contain_class_objects() -> None:
    layers = [{"class": torch.nn.Flatten, "kwargs": {}}, {"class": torch.nn.Linear, "kwargs": {"in_features": 4}}]
    names = [layer["class"].__module__ + "." + layer["class"].__qualname__ for layer in layers]
    stored = make("module.network", {"layers": layers})["layers"]
    assert stored == [
        {**layer, "class": name} for layer, name in zip(layers, names, strict=True)
    ]  # with the names that a file would contain


def test_the_reference_describes_kind_default_and_meaning() -> None:
    from sightline.config.schema import DataConfig, TrainerConfig

    assert describe(TrainerConfig, "checkpoint_every")[:2] == ("an integer or null", None)
    kind, default, text = describe(DataConfig, "source")
    assert kind == "one of: 'auto', 'digits', 'folder', 'csv', 'parquet', 'idx', 'npz', 'torchvision'"
    assert default == "auto"
    assert "embedded" in text
