"""The whole configuration as dataclasses: every key, its type, its default, and the line the configuration reference
prints. Nothing here imports torch, so a typo is answered at once."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sightline.config import typed
from sightline.config.ranges import check_ranges
from sightline.config.typed import Node, build, key_field, plain

Auto = Literal["auto"]


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image file becomes the numbers a network sees; stored with the model and used wherever it answers."""

    size: Auto | int | list[int] = key_field(
        "auto",
        "Height and width in pixels, one number for a square; `auto` takes the first training image's and asks every other to have it.",
    )
    channels: Auto | Literal[1, 3] = key_field(
        "auto", "1 for gray, 3 for RGB; `auto` takes the first training image's."
    )
    resize: Literal["stretch", "crop", "pad"] = key_field(
        "stretch",
        "How another shape becomes `size`: `stretch` ignores the aspect ratio, `crop` scales the shorter side and cuts the centre, `pad` scales the longer side and fills with `background`.",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = key_field(
        "bilinear", "The resampling filter, antialiased (except `nearest`)."
    )
    background: int = key_field(255, "The gray level, 0 to 255, behind transparent pixels and around padded images.")
    mean: Auto | list[float] = key_field(
        "auto", "Subtracted per channel, in units of 0..1; `auto` measures the training split."
    )
    std: Auto | list[float] = key_field(
        "auto", "Divided by per channel, in units of 0..1; `auto` measures the training split."
    )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, drawn per sample and epoch; never applied to another split."""

    flip: float = key_field(0.0, "Probability of a horizontal flip.")
    vertical_flip: float = key_field(0.0, "Probability of a vertical flip.")
    shift: int = key_field(1, "Shift by up to this many pixels in each direction, filled with black (pad and crop).")
    crop: list[float] | None = key_field(
        None,
        "Cut out a random part of this share of the picture's area, [least, most] (random resized crop; [0.08,1] for large pictures), and bring it to `data.preprocess.size`.",
    )
    crop_ratio: list[float] = key_field([0.75, 4 / 3], "The aspect ratios, width to height, that such a part may have.")
    rotate: float = key_field(0.0, "Rotate by up to this many degrees either way.")
    translate: float = key_field(0.0, "Move by up to this share of each side.")
    scale: list[float] = key_field([1.0, 1.0], "Scale by a factor between these two.")
    shear: float = key_field(0.0, "Shear by up to this many degrees either way.")
    brightness: float = key_field(0.0, "Brightness times 1 plus or minus up to this.")
    contrast: float = key_field(0.0, "The same for contrast.")
    saturation: float = key_field(0.0, "The same for saturation.")
    policy: Literal["trivial", "rand"] | None = key_field(
        None, "A published policy of many operations: `trivial` (TrivialAugment) or `rand` (RandAugment)."
    )
    rand_ops: int = key_field(2, "Operations RandAugment applies to each picture.")
    rand_magnitude: int = key_field(9, "Their strength, 0 to 30.")
    erase: float = key_field(0.0, "Probability of blackening a random rectangle (random erasing).")
    cutout: int = key_field(0, "Blacken a square of this many pixels anywhere.")
    transforms: list[Node] = key_field(
        [],
        "Nodes of further transforms, each called with one picture, a uint8 tensor [C,H,W]: torchvision's or your own. Correct and slower than the above, which work by batch.",
    )


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are split and fed."""

    source: Literal["auto", "digits", "folder", "csv", "parquet", "idx", "npz", "torchvision"] = key_field(
        "auto",
        "`digits` (embedded), `folder` (one folder per class), `csv` (a table beside the images), `parquet` (tables that hold them), `idx` (MNIST's files), `npz` (numpy arrays), `torchvision` (one of its data sets by name); `auto` looks at `root`, and without a root takes the digits.",
    )
    root: str | None = key_field(
        None,
        "The data directory, or a zip or tar file of one, or a single table or array file. With folders named train, val and test inside, those are the splits.",
    )
    dataset: str | None = key_field(None, "With `source=torchvision`: the data set's name, such as CIFAR10.")
    download: bool = key_field(False, "With `source=torchvision`: fetch it into `root` where it is not there.")
    csv: str | None = key_field(None, "The CSV file, relative to `root`; needed only where there is more than one.")
    images: str | None = key_field(
        None,
        "The folder the CSV's file names are relative to, itself relative to `root`; by default the CSV's own folder.",
    )
    image_column: str | None = key_field(
        None, "The CSV column of file names; by default `files`, `image name`, `file`, `filename` or `image`."
    )
    label_column: str | None = key_field(
        None, "The CSV column of labels; by default `type`, `label`, `target` or `class`."
    )
    split_column: str | None = key_field(
        None, "The column that says `train`, `val` or `test` for each row, where the table itself holds the splits."
    )
    group_column: str | None = key_field(
        None,
        "The column of what must not be torn apart, such as a patient or a scene: no group is in two splits.",
    )
    classes: int | list[str] | None = key_field(
        None,
        "The class names in order (labels may then be these names or their numbers, from 0), or how many classes for labels 0..n-1; by default the labels found, numeric ones sorted as numbers.",
    )
    val: int | float = key_field(
        0.1,
        "Where the data has no validation split: the part of the training data to set aside (below 1), or how many images (1 and above); 0 for none.",
    )
    test: int | float = key_field(
        0.2, "The same for the test split, taken first. Both are stratified by class and a function of the seed."
    )
    on_bad: Literal["error", "skip"] = key_field(
        "error",
        "What to do about images that cannot be read: stop and name them, or leave them out and list them in the run and at its end. None is ever replaced by another.",
    )
    store: Literal["auto", "pixels", "encoded"] = key_field(
        "auto",
        "How images are kept: decoded once (`pixels`), or as they are and decoded ahead of each step (`encoded`); `auto` decodes once up to 4 GiB of pixels, but with `augment.crop` only pictures of at most 64 x 64 pixels.",
    )
    cache: bool = key_field(True, "Keep them in the cache directory, so that the next run decodes nothing.")
    cache_dir: str | None = key_field(
        None, "The cache directory; by default `$SIGHTLINE_CACHE`, else the user's own. See `sightline cache`."
    )
    cache_limit: float = key_field(
        50.0, "GiB that the cache may hold; when a new entry is made, those unused for longest go."
    )
    workers: Auto | int = key_field(
        "auto",
        "Threads that make batches ahead of the step; `auto` is one a core, 0 makes them when they are asked for.",
    )
    prefetch: int = key_field(2, "How many batches ahead they may work.")
    batch_size: int = key_field(64, "Images per training step.")
    eval_batch_size: int = key_field(256, "Images per step of evaluation and prediction.")
    preprocess: PreprocessConfig = key_field(PreprocessConfig(), "See `data.preprocess`.")
    augment: AugmentConfig = key_field(AugmentConfig(), "See `data.augment`.")


@dataclass(frozen=True)
class ModuleConfig:
    """What is trained and how: network, loss, optimiser, learning-rate schedule, and the metric that picks the best."""

    network: Node = key_field(
        {"_target_": "sightline.models.networks.SmallCNN", "in_channels": "auto", "num_classes": "auto"},
        "A `_target_` node (torch.nn, torchvision.models, timm.create_model, your own class), or `layers`: a list of such nodes. The value `auto` stands for what the data has: classes, channels, image size, and in a layer list the width of the layer before.",
    )
    outputs: Literal["auto", "logits", "probabilities"] = key_field(
        "auto", "What the network answers; `auto` looks at its answer to a test input."
    )
    loss: Node = key_field(
        {"_target_": "torch.nn.CrossEntropyLoss"}, "A node for the loss, called with (output [B,classes], target [B])."
    )
    optimizer: Node = key_field(
        {"_target_": "torch.optim.AdamW", "lr": 0.003, "weight_decay": 0.01},
        "A node for any torch optimiser; the parameters are given to it.",
    )
    lr_scheduler: Node | list[Node] | None = key_field(
        {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": "auto", "total_steps": "auto"},
        "A node, or a list of nodes, for any torch scheduler; the optimiser is given to it. Beside its arguments: `interval` (`step` or `epoch`) and, for a plateau, `monitor`. `total_steps`, `T_max` and `steps_per_epoch` may be `auto` (the length of the run), `max_lr` too (the optimiser's `lr`).",
    )
    monitor: str = key_field("val_loss", "The metric that picks the best checkpoint, `<split>_<metric>`.")
    monitor_mode: Literal["auto", "min", "max"] = key_field(
        "auto", "Whether lower or higher is better; `auto` knows from the name."
    )


@dataclass(frozen=True)
class TrainerConfig:
    """How long, how often, and on what."""

    max_epochs: int = key_field(30, "Passes over the training data.")
    eval_every: int = key_field(1, "Evaluate after every so many epochs; the last is always evaluated.")
    log_every: int = key_field(50, "Write a log point, and check that the loss is finite, every so many steps.")
    checkpoint_every: int | None = key_field(
        None, "Also write `last.ckpt` every so many steps, for epochs that last hours."
    )
    device: str = key_field("auto", "`auto` (cuda, then mps, then cpu), or a torch device such as `cpu` or `cuda:1`.")
    threads: int | None = key_field(
        None, "CPU threads of torch; by default torch's own choice. The same number is needed for the same bits."
    )
    progress: bool = key_field(True, "Show a bar on a terminal, a line an epoch elsewhere, and the tables at the end.")
    deterministic: bool = key_field(
        True, "Choose operations that give the same bits every time; torch warns of one that has no such form."
    )


@dataclass(frozen=True)
class RunConfig:
    """Where the run's directory is."""

    dir: str = key_field("runs", "The directory the runs are in.")
    name: str | None = key_field(
        None, "The run's own name; by default the data's name and the time. An existing run is never written over."
    )


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is made from. `TrainConfig()` trains the embedded digits."""

    seed: int = key_field(
        0, "All randomness is a function of it: initial weights, splits, order, augmentation, dropout."
    )
    run: RunConfig = key_field(RunConfig(), "See `run`.")
    data: DataConfig = key_field(DataConfig(), "See `data`.")
    module: ModuleConfig = key_field(ModuleConfig(), "See `module`.")
    trainer: TrainerConfig = key_field(TrainerConfig(), "See `trainer`.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], also: tuple[str, ...] = ()) -> TrainConfig:
        """Checks a plain mapping against the schema. `also` are further names to suggest at the top level.

        Raises ConfigError naming the key, what was found, what was expected and the nearest valid name."""
        config: TrainConfig = build(cls, values, also=also)
        check_ranges(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """A plain, YAML-ready dict that `from_dict` turns back into an equal config."""
        return typing.cast(dict[str, Any], plain(self))


def walk() -> list[tuple[str, dataclasses.Field[Any]]]:
    """Every leaf of the schema as (dotted key, field), in order; the configuration reference is made from it."""
    return typed.walk(TrainConfig)
