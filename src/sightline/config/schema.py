"""The whole configuration as dataclasses, and the check that turns a plain dict into them.

An unknown key is an error with the nearest valid one; a wrong type says which was found and which is expected. Nothing
here imports torch, so a typo is answered at once. Every field carries the line the configuration reference prints."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal, Union

from sightline.errors import ConfigError, listing, nearest

Node = dict[str, Any]
Auto = Literal["auto"]


def _key(default: Any, doc: str) -> Any:
    """A config field with its line of documentation; dicts and lists are copied for every config."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: _copy(default), metadata={"doc": doc})
    if dataclasses.is_dataclass(default):
        return field(default_factory=type(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, type):  # a class itself, in a config made in Python: kept by its name, as a file would
        return f"{value.__module__}.{value.__qualname__}"
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image file becomes the numbers a network sees; stored with the model and used wherever it answers."""

    size: Auto | int | list[int] = _key(
        "auto",
        "Height and width in pixels, one number for a square; `auto` takes the first training image's and asks every other to have it.",
    )
    channels: Auto | Literal[1, 3] = _key("auto", "1 for gray, 3 for RGB; `auto` takes the first training image's.")
    resize: Literal["stretch", "crop", "pad"] = _key(
        "stretch",
        "How another shape becomes `size`: `stretch` ignores the aspect ratio, `crop` scales the shorter side and cuts the centre, `pad` scales the longer side and fills with `background`.",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = _key(
        "bilinear", "The resampling filter, antialiased (except `nearest`)."
    )
    background: int = _key(255, "The gray level, 0 to 255, behind transparent pixels and around padded images.")
    mean: Auto | list[float] = _key(
        "auto", "Subtracted per channel, in units of 0..1; `auto` measures the training split."
    )
    std: Auto | list[float] = _key(
        "auto", "Divided by per channel, in units of 0..1; `auto` measures the training split."
    )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, drawn per sample and epoch; never applied to another split."""

    flip: float = _key(0.0, "Probability of a horizontal flip.")
    vertical_flip: float = _key(0.0, "Probability of a vertical flip.")
    shift: int = _key(1, "Shift by up to this many pixels in each direction, filled with black (pad and crop).")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are split and fed."""

    source: Literal["auto", "digits", "folder", "csv"] = _key(
        "auto",
        "`digits` (embedded), `folder` (one folder per class), `csv` (a table beside the images); `auto` looks at `root`, and without a root takes the digits.",
    )
    root: str | None = _key(
        None, "The data directory. With folders named train, val and test inside, those are the splits."
    )
    csv: str | None = _key(None, "The CSV file, relative to `root`; needed only where there is more than one.")
    images: str | None = _key(
        None,
        "The folder the CSV's file names are relative to, itself relative to `root`; by default the CSV's own folder.",
    )
    image_column: str | None = _key(
        None, "The CSV column of file names; by default `files`, `image name`, `file`, `filename` or `image`."
    )
    label_column: str | None = _key(None, "The CSV column of labels; by default `type`, `label`, `target` or `class`.")
    classes: int | list[str] | None = _key(
        None,
        "The class names in order (labels may then be these names or their numbers, from 0), or how many classes for labels 0..n-1; by default the labels found, numeric ones sorted as numbers.",
    )
    val: int | float = _key(
        0.1,
        "Where the data has no validation split: the part of the training data to set aside (below 1), or how many images (1 and above); 0 for none.",
    )
    test: int | float = _key(
        0.2, "The same for the test split, taken first. Both are stratified by class and a function of the seed."
    )
    batch_size: int = _key(64, "Images per training step.")
    eval_batch_size: int = _key(256, "Images per step of evaluation and prediction.")
    preprocess: PreprocessConfig = _key(PreprocessConfig(), "See `data.preprocess`.")
    augment: AugmentConfig = _key(AugmentConfig(), "See `data.augment`.")


@dataclass(frozen=True)
class ModuleConfig:
    """What is trained and how: network, loss, optimiser, learning-rate schedule, and the metric that picks the best."""

    network: Node = _key(
        {"_target_": "sightline.models.networks.SmallCNN", "in_channels": "auto", "num_classes": "auto"},
        "A `_target_` node (torch.nn, torchvision.models, timm.create_model, your own class), or `layers`: a list of such nodes. The value `auto` stands for what the data has: classes, channels, image size, and in a layer list the width of the layer before.",
    )
    outputs: Literal["auto", "logits", "probabilities"] = _key(
        "auto", "What the network answers; `auto` looks at its answer to a test input."
    )
    loss: Node = _key(
        {"_target_": "torch.nn.CrossEntropyLoss"}, "A node for the loss, called with (output [B,classes], target [B])."
    )
    optimizer: Node = _key(
        {"_target_": "torch.optim.AdamW", "lr": 0.003, "weight_decay": 0.01},
        "A node for any torch optimiser; the parameters are given to it.",
    )
    lr_scheduler: Node | list[Node] | None = _key(
        {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": "auto", "total_steps": "auto"},
        "A node, or a list of nodes, for any torch scheduler; the optimiser is given to it. Beside its arguments: `interval` (`step` or `epoch`) and, for a plateau, `monitor`. `total_steps`, `T_max` and `steps_per_epoch` may be `auto` (the length of the run), `max_lr` too (the optimiser's `lr`).",
    )
    monitor: str = _key("val_loss", "The metric that picks the best checkpoint, `<split>_<metric>`.")
    monitor_mode: Literal["auto", "min", "max"] = _key(
        "auto", "Whether lower or higher is better; `auto` knows from the name."
    )


@dataclass(frozen=True)
class TrainerConfig:
    """How long, how often, and on what."""

    max_epochs: int = _key(30, "Passes over the training data.")
    eval_every: int = _key(1, "Evaluate after every so many epochs; the last is always evaluated.")
    log_every: int = _key(50, "Write a log point, and check that the loss is finite, every so many steps.")
    checkpoint_every: int | None = _key(None, "Also write `last.ckpt` every so many steps, for epochs that last hours.")
    device: str = _key("auto", "`auto` (cuda, then mps, then cpu), or a torch device such as `cpu` or `cuda:1`.")
    threads: int | None = _key(
        None, "CPU threads of torch; by default torch's own choice. The same number is needed for the same bits."
    )
    progress: bool = _key(True, "Show a bar on a terminal, a line an epoch elsewhere, and the tables at the end.")
    deterministic: bool = _key(
        True, "Choose operations that give the same bits every time; torch warns of one that has no such form."
    )


@dataclass(frozen=True)
class RunConfig:
    """Where the run's directory is."""

    dir: str = _key("runs", "The directory the runs are in.")
    name: str | None = _key(
        None, "The run's own name; by default the data's name and the time. An existing run is never written over."
    )


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is made from. `TrainConfig()` trains the embedded digits."""

    seed: int = _key(0, "All randomness is a function of it: initial weights, splits, order, augmentation, dropout.")
    run: RunConfig = _key(RunConfig(), "See `run`.")
    data: DataConfig = _key(DataConfig(), "See `data`.")
    module: ModuleConfig = _key(ModuleConfig(), "See `module`.")
    trainer: TrainerConfig = _key(TrainerConfig(), "See `trainer`.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], also: tuple[str, ...] = ()) -> TrainConfig:
        """Checks a plain mapping against the schema. `also` are further names to suggest at the top level.

        Raises ConfigError naming the key, what was found, what was expected and the nearest valid name."""
        config: TrainConfig = _build(cls, values, "", also)
        _check_ranges(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """A plain, YAML-ready dict that `from_dict` turns back into an equal config."""
        return typing.cast(dict[str, Any], _plain(self))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return _copy(value)


def _build(cls: Any, values: Any, path: str, also: tuple[str, ...] = ()) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'}: expected a group of keys, found {_found(values)}.")
    hints = typing.get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]
    made = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in names:
            inside = f" in '{path}'" if path else ""
            raise ConfigError(
                f"unknown key '{where}'.{_suggestion(str(name), path, (*names, *also))} "
                f"Valid keys{inside}: {listing(names, 40)}."
            )
        made[name] = _convert(_over_default(cls, name, value), hints[name], where)
    return cls(**made)


def _default(cls: Any, name: str) -> Any:
    item = next(item for item in dataclasses.fields(cls) if item.name == name)
    return item.default if item.default is not MISSING else typing.cast(Any, item.default_factory)()


def _over_default(cls: Any, name: str, value: Any) -> Any:
    """A node without a target of its own changes arguments of the default one; with one, it stands alone, so that no
    argument of the default optimiser ever reaches another."""
    default = _default(cls, name)
    if isinstance(default, dict) and isinstance(value, Mapping) and not {"_target_", "class", "layers"} & set(value):
        return {**default, **value}
    return value


def _suggestion(name: str, path: str, options: tuple[str, ...]) -> str:
    """The key that was meant: the same name in another group (`max_epochs` -> trainer.max_epochs), else the nearest."""
    homes = [key for key in ("seed", *(key for key, _ in walk())) if key.rpartition(".")[2] == name]
    if homes:
        return f" Did you mean '{homes[0]}'?"
    prefix = f"{path}." if path else ""
    return nearest(name, options).replace("'", f"'{prefix}", 1)


def _convert(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        accepted, converted = _accept(value, option, where)
        if accepted:
            return converted
    choices = [
        choice
        for option in options
        for choice in (typing.get_args(option) if typing.get_origin(option) is Literal else ())
    ]
    hint_ = nearest(value, [str(choice) for choice in choices]) if isinstance(value, str) else ""
    raise ConfigError(
        f"{where}: expected {' or '.join(_words(option) for option in options)}, found {_found(value)}.{hint_}"
    )


def _accept(value: Any, option: Any, where: str) -> tuple[bool, Any]:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args), value
    if origin is list and isinstance(value, list | tuple):
        return True, [_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return True, {str(key): _copy(item) for key, item in value.items()}
    if option is types.NoneType:
        return value is None, None
    if option is float and isinstance(value, int | float) and not isinstance(value, bool):
        return True, float(value)
    if (
        option is str
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and where.startswith(("data.", "run."))
    ):
        return True, str(value)  # class names such as 0 and 1, which YAML reads as numbers
    if option is str and hasattr(value, "__fspath__"):
        return True, str(value)
    return isinstance(option, type) and type(value) is option, value


def _words(option: Any) -> str:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return " or ".join(f"'{choice}'" if isinstance(choice, str) else str(choice) for choice in args)
    if origin is list:
        return f"a list of {'nodes' if args[0] == Node else _words(args[0]).removeprefix('a ') + 's'}"
    if origin is dict:
        return "a node with '_target_'"
    names = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        types.NoneType: "null",
    }
    return names.get(option, str(option))


def _found(value: Any) -> str:
    if value is None:
        return "null"
    kind = {dict: "a group of keys", list: "a list", str: "the text", bool: "the switch"}.get(
        type(value), f"the {type(value).__name__}"
    )
    return f"{kind} {value!r}"


def _check_ranges(config: TrainConfig) -> None:
    data, trainer = config.data, config.trainer
    at_least: list[tuple[str, float | int | None, int]] = [
        ("seed", config.seed, 0), ("data.val", data.val, 0), ("data.test", data.test, 0),
        ("data.batch_size", data.batch_size, 1), ("data.eval_batch_size", data.eval_batch_size, 1),
        ("data.augment.shift", data.augment.shift, 0), ("trainer.max_epochs", trainer.max_epochs, 1),
        ("trainer.eval_every", trainer.eval_every, 1), ("trainer.log_every", trainer.log_every, 1),
        ("trainer.checkpoint_every", trainer.checkpoint_every, 1), ("trainer.threads", trainer.threads, 1),
        ("data.preprocess.background", data.preprocess.background, 0),
    ]  # fmt: skip
    if config.seed >= 2**63:
        raise ConfigError(f"seed: expected a number below 2**63, found {config.seed}.")
    for name, value, low in at_least:
        if value is not None and value < low:
            raise ConfigError(f"{name}: expected a number of at least {low}, found {value}.")
    for name, value in (("flip", data.augment.flip), ("vertical_flip", data.augment.vertical_flip)):
        if not 0 <= value <= 1:
            raise ConfigError(f"data.augment.{name}: expected a probability between 0 and 1, found {value}.")
    given: dict[str, Any] = {"data.val": [data.val], "data.test": [data.test]}
    given |= {f"data.preprocess.{key}": getattr(data.preprocess, key) for key in ("mean", "std")}
    for name, values in given.items():
        if not isinstance(values, str) and not all(math.isfinite(value) for value in values):
            raise ConfigError(f"{name}: expected a number, found {values}.")
    for name, value in (("val", data.val), ("test", data.test)):
        if value > 1 and value != int(value):
            raise ConfigError(f"data.{name}: expected a part below 1 or a whole number of images, found {value}.")
    if data.source == "digits" and data.root is not None:
        raise ConfigError(
            f"data.root: the embedded digits have no directory, found {data.root!r}. For your own pictures leave "
            f"data.source at auto, or choose data=folder or data=csv."
        )
    if data.preprocess.background > 255:
        raise ConfigError(
            f"data.preprocess.background: expected a gray level of 0 to 255, found {data.preprocess.background}."
        )
    size = data.preprocess.size
    sides = [] if size == "auto" else [size] if isinstance(size, int) else list(size)
    if size != "auto" and (len(sides) not in (1, 2) or any(int(side) < 1 for side in sides)):
        raise ConfigError(
            f"data.preprocess.size: expected one side or [height, width] of at least 1 pixel, found {size}."
        )
    std = data.preprocess.std
    if not isinstance(std, str) and any(value <= 0 for value in std):
        raise ConfigError(f"data.preprocess.std: every value must be above 0, found {std}.")
    _check_nodes(config.module)


def _check_nodes(module: ModuleConfig) -> None:
    scheduler = module.lr_scheduler
    schedulers = scheduler if isinstance(scheduler, list) else [scheduler] if scheduler else []
    nodes = {"module.loss": module.loss, "module.optimizer": module.optimizer}
    nodes |= {
        f"module.lr_scheduler[{i}]" if isinstance(scheduler, list) else "module.lr_scheduler": node
        for i, node in enumerate(schedulers)
    }
    if "layers" in module.network:
        layers = module.network["layers"]
        extra = set(module.network) - {"layers"}
        if extra:
            raise ConfigError(f"module.network: 'layers' stands alone; remove {listing(sorted(extra))}.")
        if not isinstance(layers, list) or not layers:
            raise ConfigError(
                f"module.network.layers: expected a list of nodes with '_target_', found {_found(layers)}."
            )
        nodes |= {f"module.network.layers[{i}]": node for i, node in enumerate(layers)}
    else:
        nodes["module.network"] = module.network
    for key, node in nodes.items():
        if not isinstance(node, Mapping) or not ("_target_" in node or "class" in node):
            raise ConfigError(f"{key}: expected a node with '_target_', found {_found(node)}.")


def walk(cls: Any = TrainConfig, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    """Every leaf of the schema as (dotted key, field), in order; the configuration reference is made from it."""
    rows: list[tuple[str, dataclasses.Field[Any]]] = []
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            rows += walk(hints[item.name], f"{prefix}{item.name}.")
        else:
            rows.append((f"{prefix}{item.name}", item))
    return rows


def describe(cls: Any, name: str) -> tuple[str, Any, str]:
    """(type in words, default, documentation) of one field."""
    hint = typing.get_type_hints(cls)[name]
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    item = next(item for item in dataclasses.fields(cls) if item.name == name)
    return " or ".join(_words(option) for option in options), _plain(_default(cls, name)), item.metadata["doc"]
