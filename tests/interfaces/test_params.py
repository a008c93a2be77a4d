"""The parts of the params-dict trainer: dict, network, images, optimiser and schedules, metrics, checkpoints."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

import sightline.params as interface
from helpers.commands import python
from helpers.images import noise, write_image, write_table
from helpers.params_digits import small_digits
from helpers.params_user import SMALL, collection, small
from sightline.core.errors import ArtifactError, ConfigError, DataError, ModelError
from sightline.params import FashionMNIST, build_classifier, get_dataloader, load_checkpoint, params, set_seeds
from sightline.params import torchmetrics as old_torchmetrics
from sightline.params.data import build_loaders, open_splits
from sightline.params.settings import as_config, describe_value, with_defaults
from sightline.params.updates import make_optimizer, make_schedules


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_digits(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture
def in_colour(tmp_path: Path) -> Path:
    """Two classes that differ only in colour: red and blue of the same brightness."""
    for split, count in (("train", 24), ("test", 8)):
        lines = []
        for i in range(count):
            pixels = noise(8, 8, 3, seed=i) // 4
            pixels[:, :, 0 if i % 2 else 2] += 128
            write_image(tmp_path / "colour" / split / f"{i}.png", pixels)
            lines.append(f"{i}.png,{i % 2}")
        write_table(tmp_path / "colour" / split / "info.csv", "files,type", lines)
    return tmp_path / "colour"


# --- the dict


@pytest.mark.rows(
    "A01", "A02", "A03", "A04", "A05", "A06", "A07", "A08", "A09", "A10", "A11", "A12", "A13", "A14", "A15", "A16",
    "A18", "A19", "A20", "A21", "A22", "A24", "A25", "A26", "A27",
)  # fmt: skip
def test_the_dict_has_its_32_keys_with_the_documented_values() -> None:
    assert len(params) == 32
    plain = {key: value for key, value in params.items() if isinstance(value, str | int | float | list | None)}
    plain = {key: value for key, value in plain.items() if key not in ("net_arch", "learning_rate_schedule")}
    assert plain == {
        "GOOGLE_APPLICATION_CREDENTIALS": "service-account.json",
        "PUB_SUB_TOPIC": "python-tester", "PUB_SUB_PROJECT": "my-project",
        "PUB_SUB_SUBSCRIPTION": "python-tester-sub", "TIMEOUT": 3.0,
        "KAFKA_HOST": "localhost:9092", "KAFKA_TOPIC": "python-tester",
        "batch_size": 512, "image_height": 28, "image_width": 28, "shuffle_dataset": True,
        "flip_images": True, "flip_probability": 0.4, "normalise_images": False, "manual_seed": 17,
        "is_image_color": False, "normalise_mean": [0.5], "normalise_std": [0.25], "additional_transforms": None,
        "n_classes": 10, "num_epochs": 1000, "eval_freq": 5, "save_freq": 5, "learning_rate": 0.1,
        "device": "cuda" if torch.cuda.is_available() else "cpu", "mode": "notebook",
        "eval_metric_compute_freq": "epoch", "eval_batch_size": 1,
    }  # fmt: skip
    assert params["optim_class"] is torch.optim.SGD
    assert params["optim_kwargs"] == {"momentum": 0, "dampening": 0, "weight_decay": 1e-2, "nesterov": False}
    assert [entry["name"] for entry in params["learning_rate_schedule"]] == [
        "ExponentialLRSchedule",
        "ReduceLROnPlateauSchedule",
    ]


def test_every_public_name_can_be_imported_and_no_other() -> None:
    assert all(getattr(interface, name) is not None for name in interface.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'trian'\. Did you mean 'train'\?"):
        interface.trian  # noqa: B018


@pytest.mark.rows("AB13")
def test_importing_the_package_seeds_nothing() -> None:
    output = python(
        "import torch, random, numpy as np\ntorch.manual_seed(5); random.seed(5); np.random.seed(5)\n"
        "from sightline.params import params, train, build_classifier, get_dataloader, set_seeds\n"
        "print(torch.initial_seed(), random.random(), np.random.rand())"
    )
    expected = random.Random(5).random(), np.random.RandomState(5).rand()
    assert output.split() == ["5", *map(str, expected)]


def test_a_misspelt_key_is_an_error_and_an_unknown_one_a_warning() -> None:
    with pytest.raises(ConfigError, match=r"params\['num_epoch'\]: unknown key\. Did you mean 'num_epochs'\?"):
        with_defaults(params | {"num_epoch": 3})
    with pytest.warns(UserWarning, match=r"params\['wandb'\]: unknown key; it is ignored"):
        with_defaults(params | {"wandb": True})
    with pytest.raises(ConfigError, match="expected a dict, found list"):
        with_defaults([])  # type: ignore[arg-type]


def test_missing_keys_have_their_default_values() -> None:
    assert with_defaults({"batch_size": 64}) == params | {"batch_size": 64}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 0, "params['batch_size']: expected an integer >= 1, found 0"),
        ("eval_batch_size", "8", "params['eval_batch_size']: expected an integer >= 1, found '8'"),
        ("num_epochs", 0, "params['num_epochs']: expected an integer >= 1"),
        ("save_freq", 0, "params['save_freq']: expected an integer >= 1"),
        ("flip_probability", 1.5, "params['flip_probability']: expected a probability in [0, 1]"),
        ("flip_images", "no", "params['flip_images']: expected True or False, found 'no'"),
        ("manual_seed", -1, "params['manual_seed']: expected an integer >= 0"),
        ("image_height", 0, "params['image_height']: expected an integer >= 1"),
        ("n_classes", "ten", "params['n_classes']: expected an integer"),
    ],
)
def test_a_value_out_of_range_is_reported_with_the_key_of_the_dict(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        as_config(with_defaults(params | {key: value}), "data")


@pytest.mark.rows("A13")
def test_normalising_needs_one_number_for_gray_and_three_for_colour() -> None:
    with pytest.raises(ConfigError, match=r"normalise_mean'\]: expected 3 numbers for colour images"):
        with_defaults(params | {"is_image_color": True, "normalise_images": True})
    with_defaults(params | {"is_image_color": True})  # without normalise_images it is not checked


def test_a_wrong_element_of_a_value_is_named_by_the_dict(tmp_path: Path) -> None:
    settings = params | {"is_image_color": False, "normalise_images": True, "normalise_mean": ["a"]}
    with pytest.raises(ConfigError, match=r"^params\['normalise_mean'\]\[0\]: expected a number, found the string 'a'"):
        FashionMNIST(settings, "train", tmp_path)


def test_values_are_described_without_addresses() -> None:
    description = describe_value(
        {"class": nn.ELU, "steps": (nn.ReLU(), lambda image: image), "rate": 0.1, "more": object()}
    )
    assert description["class"] == "torch.nn.modules.activation.ELU"
    assert description["steps"][0] == "ReLU()"
    assert "0x" not in repr(description)


# --- the network


@pytest.mark.rows("A34", "AB3")
def test_the_default_network_has_its_published_size_and_returns_probabilities() -> None:
    model = build_classifier(params)
    assert sum(parameter.numel() for parameter in model.parameters()) == 406_218
    assert model[-2].in_features == 256
    output = model.eval()(torch.rand(3, 1, 28, 28))
    assert output.shape == (3, 10)
    torch.testing.assert_close(output.sum(1), torch.ones(3))


@pytest.mark.rows("AB7")
def test_logits_are_the_network_without_its_softmax() -> None:
    set_seeds(1)
    with_softmax = build_classifier(params).eval()
    set_seeds(1)
    logits = build_classifier(params, outputs="logits").eval()
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(logits(x).softmax(1), with_softmax(x))
    with pytest.raises(ConfigError, match=r"outputs: expected probabilities or logits.*Did you mean 'logits'\?"):
        build_classifier(params, outputs="logit")


@pytest.mark.rows("AB4")
def test_building_it_does_not_change_the_running_statistics() -> None:
    model = build_classifier(params)
    norm = next(layer for layer in model if isinstance(layer, nn.BatchNorm2d))
    assert bool((norm.running_var == 1).all())
    assert int(norm.num_batches_tracked) == 0
    assert model.training


def test_the_layers_draw_their_weights_in_order() -> None:
    set_seeds(3)
    model = build_classifier(params)
    set_seeds(3)
    first, second = nn.Conv2d(1, 32, 5, 2), (nn.BatchNorm2d(32), nn.Conv2d(32, 64, 4))[1]
    assert torch.equal(model[0].weight, first.weight)
    assert torch.equal(model[4].weight, second.weight)


@pytest.mark.rows("AB1", "AB2")
def test_a_layer_of_the_wrong_width_is_reported_with_the_fix() -> None:
    five = [*params["net_arch"][:8], *params["net_arch"][4:]]
    with pytest.raises(ModelError) as error:
        build_classifier(params | {"net_arch": five})
    message = str(error.value)
    assert message.startswith("params['net_arch']: ")
    assert "layer '8', Conv2d, got 64 x 7 x 7 but needs 32 channels; set in_channels: 64, or auto" in message
    assert "The smallest square image this network takes is 35 x 35." in message
    wide = [
        {**layer, "kwargs": {key: "auto" if key == "in_channels" else value for key, value in layer["kwargs"].items()}}
        for layer in five
    ]
    model = build_classifier(params | {"net_arch": wide, "image_height": 35, "image_width": 35})
    assert model.eval()(torch.zeros(1, 1, 35, 35)).shape == (1, 10)
    with pytest.raises(ModelError, match="35 x 35"):
        build_classifier(params | {"net_arch": wide, "image_height": 34, "image_width": 34})


@pytest.mark.rows("A15")
def test_colour_with_a_first_layer_for_gray_names_the_fix() -> None:
    with pytest.raises(
        ModelError, match=r"set in_channels: 3, or auto.*or params\['is_image_color'\] = False"
    ) as error:
        build_classifier(params | {"is_image_color": True})
    assert "With 'auto' for in_channels and num_features in every layer it fits." in str(error.value)
    assert "data.preprocess" not in str(error.value)


@pytest.mark.parametrize("layers", ["conv", [nn.Conv2d], None])
def test_layers_must_be_a_list_of_dicts(layers: Any) -> None:
    with pytest.raises(ConfigError, match=r"params\['net_arch'\]: expected a list of dicts"):
        build_classifier(params | {"net_arch": layers})


@pytest.mark.rows("A17")
def test_layers_may_be_any_torch_class_or_a_dotted_name() -> None:
    layers = [{"class": "torch.nn.Conv2d", "kwargs": {"in_channels": "auto", "out_channels": 4, "kernel_size": 3}},
              {"class": nn.GELU}, {"class": nn.AdaptiveAvgPool2d, "kwargs": {"output_size": 1}}]  # fmt: skip
    model = build_classifier(params | {"net_arch": layers, "n_classes": 3})
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


# --- images


@pytest.mark.rows("A35", "A38", "AB13")
def test_images_are_floats_between_0_and_1_with_integer_labels(data: Path) -> None:
    dataset = FashionMNIST(small(), "test", data)
    image, label = dataset[3]
    assert (image.dtype, image.shape, label.dtype, label.shape) == (torch.float32, (1, 8, 8), torch.int64, ())
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert len(dataset) == 40
    assert len(list(dataset)) == 40  # iterating by index ends
    assert torch.equal(dataset[-1][0], dataset[39][0])


@pytest.mark.rows("A10", "AB13")
def test_images_are_resized_to_the_size_in_the_dict(data: Path) -> None:
    assert FashionMNIST(small(image_height=12, image_width=10), "train", data)[0][0].shape == (1, 12, 10)


@pytest.mark.rows("A12", "AB10")
def test_only_training_images_are_flipped(data: Path) -> None:
    plain = {kind: FashionMNIST(small(), kind, data) for kind in ("train", "test")}
    flipped = {kind: FashionMNIST(small(flip_images=True, flip_probability=1.0), kind, data) for kind in plain}
    assert torch.equal(flipped["train"][5][0], plain["train"][5][0].flip(1, 2))
    assert torch.equal(flipped["test"][5][0], plain["test"][5][0])
    torch.manual_seed(0)
    random_flips = FashionMNIST(small(flip_images=True, flip_probability=0.4), "train", data)
    flips = [plain["train"][7][0].flip(axes) for axes in ([], [1], [2], [1, 2])]
    images = [random_flips[7][0] for _ in range(400)]
    indices = [next(i for i, flip in enumerate(flips) if torch.equal(flip, image)) for image in images]
    shares = [indices.count(i) / 400 for i in range(4)]
    assert shares == pytest.approx([0.36, 0.24, 0.24, 0.16], abs=0.08)  # each axis is flipped independently


@pytest.mark.rows("A13")
def test_images_are_normalised_if_the_dict_says_so(data: Path) -> None:
    plain = FashionMNIST(small(), "test", data)[0][0]
    normalised = FashionMNIST(small(normalise_images=True), "test", data)[0][0]
    torch.testing.assert_close(normalised, (plain - 0.5) / 0.25)


@pytest.mark.rows("A15", "AB16")
def test_colour_images_are_red_green_blue(in_colour: Path) -> None:
    dataset = FashionMNIST(small(is_image_color=True, n_classes=2), "test", in_colour)
    image, label = dataset[1]
    assert image.shape == (3, 8, 8)
    assert int(label) == 1
    assert float(image[0].mean()) > float(image[2].mean()) + 0.3  # label 1 is the red one
    assert FashionMNIST(small(n_classes=2), "test", in_colour)[1][0].shape == (1, 8, 8)


@pytest.mark.rows("A39", "A27")
def test_a_loader_uses_the_batch_sizes_of_the_dict(data: Path) -> None:
    train = get_dataloader(small(batch_size=40), "train", data)
    assert isinstance(train, torch.utils.data.DataLoader)
    assert [len(y) for _, y in train] == [40, 40, 16]
    torch.manual_seed(0)
    first, second = ([y.tolist() for _, y in train] for _ in range(2))
    assert first != second
    test = get_dataloader(small(eval_batch_size=25), "test", data)
    assert torch.equal(next(iter(test))[1], FashionMNIST(small(), "test", data).packed.labels[:25])
    unshuffled = get_dataloader(small(shuffle_dataset=False), "train", data)
    assert torch.equal(torch.cat([y for _, y in unshuffled]), FashionMNIST(small(), "train", data).packed.labels)


def test_an_unknown_kind_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match=r"kind: expected 'train' or 'test', found 'tset'\. Did you mean 'test'\?"):
        FashionMNIST(small(), "tset", data)


def test_unusable_data_is_reported_in_terms_of_the_dict(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^datadir: '.*nowhere' does not exist"):
        FashionMNIST(small(), "train", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"label '[4-9]' is out of range; params\['n_classes'\] has 0 to 3"):
        FashionMNIST(small(n_classes=4), "train", data)
    train_only = small_digits(tmp_path / "alone", test=0)
    (train_only / "test" / "info.csv").unlink(missing_ok=True)
    (train_only / "test").rmdir()
    with pytest.raises(DataError, match=r"has no test images\. Put them into '.*alone/test'"):
        FashionMNIST(small(), "train", train_only)


def test_labels_may_be_names_if_their_number_is_n_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(6):
            write_image(tmp_path / split / f"{i}.png", noise(8, 8, seed=i + len(split)))
        write_table(tmp_path / split / "info.csv", "files,type", [f"{i}.png,{('cat', 'dog')[i % 2]}" for i in range(6)])
    assert FashionMNIST(small(n_classes=2), "train", tmp_path).classes == ("cat", "dog")
    with pytest.raises(DataError, match="label 'cat' is out of range"):
        FashionMNIST(small(n_classes=3), "train", tmp_path)


class Brighter(nn.Module):
    """A transform that is a module, as older versions of torchvision required."""

    def forward(self, image: Tensor) -> Tensor:
        return image + 1


@pytest.mark.rows("A16")
@pytest.mark.parametrize(
    "additional",
    [
        [Brighter(), transforms.Normalize([0.5], [0.5])],
        [transforms.Compose([Brighter(), v2.Normalize([0.5], [0.5])])],
        nn.Sequential(Brighter(), transforms.Normalize([0.5], [0.5])),
        [lambda image: (image + 0.5) / 0.5],
    ],
)
def test_additional_transforms_run_after_flips_and_normalising_on_both_splits(data: Path, additional: Any) -> None:
    for kind in ("train", "test"):
        plain = FashionMNIST(small(normalise_images=True), kind, data)[2][0]
        transformed = FashionMNIST(small(normalise_images=True, additional_transforms=additional), kind, data)[2][0]
        torch.testing.assert_close(transformed, (plain + 1 - 0.5) / 0.5)


@pytest.mark.rows("A16", "AB10")
def test_random_additional_transforms_apply_only_to_training(data: Path) -> None:
    settings = small(additional_transforms=[transforms.Compose([Brighter(), v2.RandomRotation(90)])])
    splits, preprocess, _ = open_splits(settings, data)
    train, test = build_loaders(settings, splits, preprocess, torch.device("cpu"))
    plain = FashionMNIST(small(), "test", data)
    images = torch.cat([batch.x for batch in test])  # type: ignore[arg-type]
    torch.testing.assert_close(images, torch.stack([image + 1 for image, _ in plain]))

    seeds = list(range(4))

    def epoch(number: int, first: int = 0) -> list[Tensor]:
        set_seeds(seeds.pop())  # random numbers drawn elsewhere do not matter
        train.seek(number, first)
        return [batch.x for batch in train]  # type: ignore[misc]

    once, again, other = epoch(0), epoch(0), epoch(1)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert torch.equal(epoch(0, 2)[0], once[2])
    assert not torch.equal(torch.cat(once).sort(0)[0], torch.cat(other).sort(0)[0])


@pytest.mark.rows("A16")
@pytest.mark.parametrize(
    ("additional", "message"),
    [
        ([3], r"additional_transforms'\]\[0\]: expected a transform, found int"),
        (
            [Brighter(), v2.Resize(4)],
            r"\[1\]: Resize received .*\[1, 8, 8\] and returned .* \[1, 4, 4\]\. .* with params\['image_height'\]",
        ),
        ([transforms.ToTensor()], r"\[0\]: ToTensor received a float32 tensor \[1, 8, 8\] and failed with TypeError"),
    ],
)
def test_an_additional_transform_that_does_not_fit_is_refused(data: Path, additional: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FashionMNIST(small(additional_transforms=additional), "train", data)


@pytest.mark.rows("A14")
def test_set_seeds_seeds_every_generator() -> None:
    drawn = []
    for _ in range(2):
        set_seeds(17)
        drawn.append((torch.rand(2).tolist(), random.random(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


# --- optimiser and schedules


@pytest.mark.rows("A22", "A23")
def test_the_optimiser_and_every_schedule_are_created() -> None:
    model = build_classifier(small())
    optimizer = make_optimizer(small(), model)
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.1, 1e-2, 0)
    names, schedules = make_schedules(small(), optimizer)
    assert names == ["ExponentialLRSchedule", "ReduceLROnPlateauSchedule"]
    assert [(schedule.interval, schedule.monitor) for schedule in schedules] == [
        ("epoch", None),
        ("epoch", "test_loss"),
    ]
    other = make_optimizer(small(optim_class="torch.optim.Adam", optim_kwargs={"betas": (0.8, 0.9)}), model)
    assert isinstance(other, torch.optim.Adam)


@pytest.mark.rows("AB5")
def test_an_argument_that_torch_has_removed_is_ignored_with_a_warning() -> None:
    entry = {
        "name": "ExponentialLRSchedule",
        "class": torch.optim.lr_scheduler.ExponentialLR,
        "kwargs": {"gamma": 0.99, "last_epoch": -1, "verbose": False},
    }
    settings = small(learning_rate_schedule=[entry])
    optimizer = make_optimizer(settings, build_classifier(settings))
    with pytest.warns(UserWarning, match="torch has removed 'verbose' from ExponentialLR; it is ignored") as warned:
        _, schedules = make_schedules(settings, optimizer)
    assert len(warned) == 1
    assert schedules[0].scheduler.gamma == 0.99


@pytest.mark.rows("AB12")
def test_a_plateau_monitors_a_metric_that_fits_its_mode() -> None:
    def monitor_of(metrics: Any = None, **entry: Any) -> str | None:
        plateau = {"class": torch.optim.lr_scheduler.ReduceLROnPlateau, **entry}
        settings = small(learning_rate_schedule=[plateau])
        return make_schedules(settings, make_optimizer(settings, build_classifier(settings)), metrics)[1][0].monitor

    assert monitor_of(kwargs={"mode": "min"}) == monitor_of() == "test_loss"
    assert monitor_of(collection(), kwargs={"mode": "max"}) == "test_Accuracy"
    assert monitor_of(kwargs={"mode": "max"}, monitor="test_Recall") == "test_Recall"
    with pytest.raises(ConfigError, match=r"'min' contradicts the monitor.*'test_Accuracy' improves.*to 'max'"):
        monitor_of(kwargs={"mode": "min"}, monitor="test_Accuracy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim_kwargs": {"momentun": 0.9}}, r"optim_kwargs'\]\.momentun: .* Did you mean 'momentum'\?"),
        ({"optim_kwargs": {"lr": 0.1}}, r"params\['optim_kwargs'\]: .*multiple values for argument 'lr'"),
        (
            {"optim_class": "torch.optim.SDG"},
            r"params\['optim_class'\]: 'torch.optim' has no attribute 'SDG'. Did you mean 'SGD'",
        ),
        ({"optim_class": nn.Linear}, r"params\['optim_"),
        ({"learning_rate": -1.0}, "Invalid learning rate"),
        ({"learning_rate_schedule": {"class": nn.ELU}}, "expected a list of dicts"),
        ({"learning_rate_schedule": [{"klass": nn.ELU}]}, r"\[0\]: expected a dict with 'class'"),
        (
            {"learning_rate_schedule": [{"class": torch.optim.lr_scheduler.ExponentialLR, "kwargs": {"gama": 1}}]},
            "gama",
        ),
        (
            {"learning_rate_schedule": [{**entry, "name": "a"} for entry in params["learning_rate_schedule"]]},
            "must be unique",
        ),
    ],
)
def test_a_wrong_optimiser_or_schedule_names_its_key(changes: dict[str, Any], message: str) -> None:
    settings = small(**changes)
    with pytest.raises(ConfigError, match=message):
        make_schedules(settings, make_optimizer(settings, build_classifier(small())))


# --- metrics of 2022


@pytest.mark.rows("AB6")
def test_old_constructors_compute_the_same_values_under_their_old_names() -> None:
    metrics = collection(compute_on_step=False)
    target = torch.arange(40) % 10
    scores = torch.nn.functional.one_hot(torch.where(target == 3, 4, target), 10).float()
    assert metrics(scores, target) == {}  # it accumulates, and computes nothing in the step
    values = {name: round(float(value), 4) for name, value in metrics.compute().items()}
    assert values == {"Accuracy": 0.9, "Precision": 0.85, "Recall": 0.9, "F1Score": 0.8667}
    assert float(collection()(scores, target)["Accuracy"]) == pytest.approx(0.9)
    assert float(old_torchmetrics.Precision(10)(scores, target)) == pytest.approx(0.9)  # the old default was micro


@pytest.mark.rows("AB6")
def test_current_constructors_and_all_other_names_are_from_torchmetrics() -> None:
    import torchmetrics

    assert old_torchmetrics.MeanSquaredError is torchmetrics.MeanSquaredError
    metric = old_torchmetrics.Accuracy(task="multiclass", num_classes=3)
    assert type(metric) is torchmetrics.classification.MulticlassAccuracy
    message = r"num_classes: expected an integer, the number.*task='multiclass', num_classes=10"
    with pytest.raises(ConfigError, match=message):
        old_torchmetrics.Accuracy(average="macro")
    with pytest.warns(UserWarning, match="threshold"):
        old_torchmetrics.Accuracy(num_classes=3, threshold=0.5)
    with pytest.raises(ConfigError, match=r"Recall: .*average"):
        old_torchmetrics.Recall(3, average="mean")


# --- checkpoints


@pytest.mark.rows("AB14")
def test_a_checkpoint_with_the_original_keys_loads(tmp_path: Path) -> None:
    set_seeds(0)
    original = build_classifier(small())
    optimizer = make_optimizer(small(), original)
    names, schedules = make_schedules(small(), optimizer)
    content = {"model_state_dict": original.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    content |= {f"{name}state_dict": s.scheduler.state_dict() for name, s in zip(names, schedules, strict=True)}
    torch.save(content, tmp_path / "model_epoch_5.pt")
    model = build_classifier(small())
    loaded = load_checkpoint(tmp_path / "model_epoch_5.pt", model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in original.state_dict().items())
    assert loaded["ExponentialLRSchedulestate_dict"]["gamma"] == 0.99
    with pytest.raises(ArtifactError, match="belongs to another network"):
        load_checkpoint(tmp_path / "model_epoch_5.pt", build_classifier(small(n_classes=3)))
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(ArtifactError, match=r"no 'model_state_dict'.* It holds: weights"):
        load_checkpoint(tmp_path / "other.pt", model)


class Payload:
    """An object whose pickle creates a directory when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.mark),)


@pytest.mark.rows("AB14")
def test_loading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"model_state_dict": Payload(tmp_path / "mark")}, tmp_path / "bad.pt")
    with pytest.raises(ArtifactError, match="could run code"):
        load_checkpoint(tmp_path / "bad.pt", nn.Sequential(*[layer["class"](**layer["kwargs"]) for layer in SMALL]))
    assert not (tmp_path / "mark").exists()
