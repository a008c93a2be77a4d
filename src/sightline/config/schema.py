"""The whole configuration as dataclasses: every key, its type, its default, and the line the configuration reference
prints. Nothing here imports torch, so a typo is answered at once."""

from __future__ import annotations  # the types of fields are texts, which `hydra_config` compares

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sightline.config import typed
from sightline.config.ranges import (
    BELOW_2_63,
    FINITE,
    FRACTION_OR_COUNT,
    IMAGE_SIZE,
    PROBABILITY,
    Range,
    at_least,
    between,
    finite_above,
    positive_interval,
)
from sightline.config.shorthand import expand
from sightline.config.typed import Node, build_config, describe_found, key_field, nodes_of, to_plain
from sightline.core.errors import ConfigError, join_names

Auto = Literal["auto"]


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image file becomes the numbers a network sees; stored with the model and used wherever it answers."""

    size: Auto | int | list[int] = key_field(
        "auto",
        "Height and width in pixels, one number for a square; `auto` takes the first training image's and asks every "
        "other to have it, or, with pretrained weights, the size these were trained with.",
        IMAGE_SIZE,
    )
    channels: Auto | Literal[1, 3] = key_field(
        "auto", "1 for gray, 3 for RGB; `auto` takes the first training image's, or what pretrained weights take."
    )
    resize: Literal["auto", "stretch", "crop", "pad"] = key_field(
        "auto",
        "How another shape becomes `size`: `stretch` ignores the aspect ratio, `crop` scales the shorter side and cuts "
        "the centre, `pad` scales the longer side and fills with `background`; `auto` is what pretrained weights were "
        "measured with, else `stretch`.",
    )
    crop_pct: Auto | float | None = key_field(
        "auto",
        "Scale to `size` / `crop_pct`, rounded down, and cut `size` out of the centre (0.875 scales to 256 for 224); "
        "null cuts first and scales once. `auto` is what pretrained weights were measured with, else null.",
        between(0.1, 2, "a share of 0.1 to 2, such as 0.875, or null"),
    )
    interpolation: Literal["auto", "nearest", "bilinear", "bicubic", "lanczos"] = key_field(
        "auto",
        "The resampling filter, antialiased (except `nearest`); `auto` is what pretrained weights were trained with, "
        "else `bilinear`.",
    )
    background: int = key_field(
        255,
        "The gray level, 0 to 255, behind transparent pixels and around padded images.",
        at_least(0),
        between(0, 255, "a gray level of 0 to 255"),
    )
    mean: Auto | list[float] = key_field(
        "auto",
        "Subtracted per channel, in units of 0..1; `auto` measures the training split, or takes the pretrained "
        "weights' own.",
        FINITE,
    )
    std: Auto | list[float] = key_field(
        "auto",
        "Divided by per channel, in units of 0..1; `auto` measures the training split, or takes the pretrained "
        "weights' own.",
        finite_above(0, "numbers above 0"),
    )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, drawn per sample and epoch; never applied to another split."""

    flip: float = key_field(0.0, "Probability of a horizontal flip.", PROBABILITY)
    vertical_flip: float = key_field(0.0, "Probability of a vertical flip.", PROBABILITY)
    shift: int = key_field(
        1, "Shift by up to this many pixels in each direction, filled with black (pad and crop).", at_least(0)
    )
    crop: list[float] | None = key_field(
        None,
        "Cut out a random part of this share of the picture's area, [least, most] (random resized crop; [0.08,1] for "
        "large pictures), and bring it to `data.preprocess.size`.",
        positive_interval(most=1),
    )
    crop_ratio: list[float] = key_field(
        [0.75, 4 / 3], "The aspect ratios, width to height, that such a part may have.", positive_interval()
    )
    rotate: float = key_field(0.0, "Rotate by up to this many degrees either way.", between(0, 180))
    translate: float = key_field(0.0, "Move by up to this share of each side.", between(0, 1))
    scale: list[float] = key_field([1.0, 1.0], "Scale by a factor between these two.", positive_interval())
    shear: float = key_field(0.0, "Shear by up to this many degrees either way.", between(0, 89))
    brightness: float = key_field(0.0, "Brightness times 1 plus or minus up to this.", between(0, 10))
    contrast: float = key_field(0.0, "The same for contrast.", between(0, 10))
    saturation: float = key_field(0.0, "The same for saturation.", between(0, 10))
    policy: Literal["trivial", "rand"] | None = key_field(
        None, "A published policy of many operations: `trivial` (TrivialAugment) or `rand` (RandAugment)."
    )
    rand_ops: int = key_field(2, "Operations RandAugment applies to each image.", between(1, 20))
    rand_magnitude: int = key_field(9, "Their strength, 0 to 30.", between(0, 30))
    erase: float = key_field(0.0, "Probability of blackening a random rectangle (random erasing).", PROBABILITY)
    cutout: int = key_field(0, "Blacken a square of this many pixels anywhere.", at_least(0))
    transforms: list[Node] = key_field(
        [],
        "Nodes of further transforms, each called with one picture, a uint8 tensor [C,H,W]: torchvision's or your own. "
        "Correct and slower than the above, which work by batch.",
    )


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are split and fed."""

    source: Literal["auto", "digits", "folder", "csv", "parquet", "idx", "npz", "torchvision"] = key_field(
        "auto",
        "`digits` (embedded), `folder` (one folder per class), `csv` (a table beside the images), `parquet` (tables "
        "that hold them), `idx` (MNIST's files), `npz` (numpy arrays), `torchvision` (one of its data sets by name); "
        "`auto` looks at `root`, and without a root takes the digits.",
    )
    root: str | None = key_field(
        None,
        "The data directory, or a zip or tar file of one, or a single table or array file. With folders named train, "
        "val and test inside, those are the splits.",
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
    target: Literal["class", "number"] = key_field(
        "class",
        "What a label is: the name or the index of a class, or a number to predict, such as an age or a share. With "
        "numbers the network has one output, the loss is `torch.nn.MSELoss` unless another is chosen, and `mse` and "
        "`mae` are measured.",
    )
    split_column: str | None = key_field(
        None, "The column that says `train`, `val` or `test` for each row, where the table itself holds the splits."
    )
    group_column: str | None = key_field(
        None, "The column of what must not be torn apart, such as a patient or a scene: no group is in two splits."
    )
    classes: int | list[str] | None = key_field(
        None,
        "The class names in order (labels may then be these names or their numbers, from 0), or how many classes for "
        "labels 0..n-1; by default the labels found, numeric ones sorted as numbers.",
    )
    val: int | float = key_field(
        0.1,
        "Where the data has no validation split: the part of the training data to set aside (below 1), or how many "
        "images (1 and above); 0 for none.",
        at_least(0),
        FRACTION_OR_COUNT,
    )
    test: int | float = key_field(
        0.2,
        "The same for the test split, taken first. Both are stratified by class and a function of the seed.",
        at_least(0),
        FRACTION_OR_COUNT,
    )
    on_bad: Literal["error", "skip"] = key_field(
        "error",
        "What to do about images that cannot be read: stop and name them, or leave them out and list them in the run "
        "and at its end. None is ever replaced by another.",
    )
    store: Literal["auto", "pixels", "encoded"] = key_field(
        "auto",
        "How images are kept: decoded once (`pixels`), or as they are and decoded ahead of each step (`encoded`); "
        "`auto` decodes once up to 4 GiB of pixels, but with `augment.crop` only pictures of at most 64 x 64 pixels.",
    )
    cache: bool = key_field(True, "Keep them in the cache directory, so that the next run decodes nothing.")
    cache_dir: str | None = key_field(
        None, "The cache directory; by default `$SIGHTLINE_CACHE`, else the user's own. See `sightline cache`."
    )
    cache_limit: float = key_field(
        50.0, "GiB that the cache may hold; when a new entry is made, those unused for longest go.", at_least(0)
    )
    workers: Auto | int = key_field(
        "auto",
        "Threads that make batches ahead of the step; `auto` is one a core, 0 makes them when they are asked for.",
        at_least(0),
    )
    prefetch: int = key_field(2, "How many batches ahead they may work.", at_least(0))
    sampler: Literal["shuffle", "balanced"] = key_field(
        "shuffle",
        "Which training images an epoch shows: every one once, in random order, or as many of each class as of the "
        "others (rare classes repeat, common ones take turns), as many in all.",
    )
    batch_size: int = key_field(
        64,
        "Images per training step. The last step of an epoch has what is left, and a single image that is left joins "
        "the step before it.",
        at_least(1),
    )
    drop_last: bool = key_field(
        False, "Leave out of each epoch what does not fill a step, which are other images in every epoch."
    )
    eval_batch_size: Auto | int = key_field(
        "auto",
        "Images per step of evaluation and prediction; `auto` is the largest power of two, up to 256, whose images and "
        "the largest activations of the network take no more than 256 MiB.",
        at_least(1),
    )
    preprocess: PreprocessConfig = key_field(PreprocessConfig(), "See `data.preprocess`.")
    augment: AugmentConfig = key_field(AugmentConfig(), "See `data.augment`.")


@dataclass(frozen=True)
class ModuleConfig:
    """What is trained and how: network, loss, optimiser, learning-rate schedule, and the metric that picks the best."""

    network: Node = key_field(
        {"_target_": "sightline.models.networks.SmallCNN", "in_channels": "auto", "num_classes": "auto"},
        "A `_target_` node (torch.nn, torchvision.models, timm.create_model, your own class), or `layers`: a list of "
        "such nodes. The value `auto` stands for what the data has: classes, channels, image size, and in a layer list "
        "the width of the layer before.",
    )
    outputs: Literal["auto", "logits", "probabilities"] = key_field(
        "auto", "What the network answers; `auto` looks at its answer to a test input."
    )
    loss: Node = key_field(
        {"_target_": "torch.nn.CrossEntropyLoss"},
        "A node for the loss, called with (output [B,classes], target [B]); with `data.target=number` by default "
        "`torch.nn.MSELoss`, called with (output [B,1], target [B,1]).",
    )
    optimizer: Node = key_field(
        {"_target_": "torch.optim.AdamW", "lr": 0.003, "weight_decay": 0.01},
        "A node for any torch optimiser; the parameters are given to it.",
    )
    lr_scheduler: Node | list[Node] | None = key_field(
        {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": "auto", "total_steps": "auto"},
        "A node, or a list of nodes, for any torch scheduler; the optimiser is given to it. Beside its arguments: "
        "`interval` (`step` or `epoch`) and, for a plateau, `monitor`. `total_steps`, `T_max` and `steps_per_epoch` "
        "may be `auto` (the length of the run), `max_lr` too (the optimiser's `lr`).",
    )
    weights: str | None = key_field(
        None,
        "A file of weights to start from (`.safetensors`, or a checkpoint of torch or timm), or the directory of a "
        "run: all but the head is loaded, the head where its classes fit.",
    )
    weights_by: Literal["name", "order"] = key_field(
        "name",
        "How the tensors of that file are found: by their names, or by their order, for a file of this very network "
        "that has other names.",
    )
    pretrained: bool = key_field(
        False, "Start from the published weights of a timm or torchvision network, with a new head for these classes."
    )
    freeze_epochs: int = key_field(0, "Train the head alone for so many epochs first; then everything.", at_least(0))
    freeze: list[str] = key_field(
        [],
        "Layers that are never trained, by name or pattern (`features.0`, `layer[12].*`); their running statistics "
        "stay too.",
    )
    freeze_statistics: bool = key_field(
        False,
        "Let batch normalisation use and keep the running statistics of the weights it starts from, in training too, "
        "while its scales and shifts are trained; right for weights of another data set and small batches.",
    )
    layer_decay: float = key_field(
        1.0,
        "The learning rate of each block is this times that of the block above it, from the head down: below 1 the "
        "early layers of a pretrained network change less.",
        Range(lambda value: 0 < value <= 1, "a factor above 0 and at most 1, such as 0.75"),
    )
    head_lr: float | None = key_field(
        None,
        "The learning rate of the head, where it is another than the optimiser's `lr`: a new head has further to go "
        "than the weights below it.",
        finite_above(0, "a number above 0, or null"),
    )
    param_groups: list[Node] = key_field(
        [],
        "Arguments of the optimiser for parts of the network: `{match: 'head.*', lr: 0.01}`. The first entry that "
        "matches a parameter counts.",
    )
    decay_1d: bool = key_field(
        True, "Whether weight decay acts on biases and on the scales of normalisation layers, too."
    )
    class_weights: Auto | list[float] | None = key_field(
        None,
        "How much each class counts in the loss, in class order; `auto` is inverse to its share of the training "
        "images.",
        at_least(0, "numbers of at least 0"),
        FINITE,
    )
    mixup: float = key_field(
        0.0, "Blend pairs of training images, by shares drawn from Beta(mixup, mixup); 0 is off.", at_least(0), FINITE
    )
    cutmix: float = key_field(
        0.0,
        "Put a rectangle of one training image into another, its area from Beta(cutmix, cutmix); 0 is off.",
        at_least(0),
        FINITE,
    )
    mix_probability: float = key_field(
        1.0,
        "The share of batches that are mixed; with both, each mixed batch takes one of the two at random.",
        PROBABILITY,
    )
    ema: float | None = key_field(
        None,
        "Keep a moving average of the weights, of this decay per step (0.99 to 0.9999), and evaluate and export that.",
        Range(lambda value: 0 < value < 1, "a decay between 0 and 1, such as 0.999, or null for none"),
    )
    ema_warmup: bool = key_field(
        True, "Let the average follow faster at first: a decay of at most (1 + step) / (10 + step)."
    )
    top_k: list[int] = key_field([], "Also measure how often the right class is among the first k.", at_least(1))
    per_class: bool = key_field(False, "Also record precision, recall and F1 of every class at each evaluation.")
    metrics: dict[str, Node] = key_field(
        {},
        "Further metrics by name: nodes of torchmetrics objects, such as "
        "`{auroc: {_target_: torchmetrics.AUROC, task: multiclass, num_classes: auto}}`.",
    )
    monitor: str = key_field("val_loss", "The metric that picks the best checkpoint, `<split>_<metric>`.")
    monitor_mode: Literal["auto", "min", "max"] = key_field(
        "auto",
        "Whether lower or higher is better; `auto` knows from the metric or its name, and asks for this key where "
        "neither says.",
    )


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """When to end a run that no longer gets better. What is exported is the best epoch in any case."""

    patience: int | None = key_field(
        None, "End after so many evaluations in a row without a better value; null never does.", at_least(1)
    )
    min_delta: float = key_field(0.0, "What is better by no more than this is not better.", at_least(0))
    monitor: str | None = key_field(None, "The metric to watch; by default `module.monitor`.")
    monitor_mode: Literal["auto", "min", "max"] = key_field(
        "auto", "Whether lower or higher values of it are better; as `module.monitor_mode`."
    )


@dataclass(frozen=True)
class TrainerConfig:
    """How long, how often, and on what."""

    max_epochs: int = key_field(30, "Passes over the training data.", at_least(1))
    eval_every: int = key_field(1, "Evaluate after every so many epochs; the last is always evaluated.", at_least(1))
    log_every: int = key_field(
        50, "Write a log point, and check that the loss is finite, every so many steps.", at_least(1)
    )
    checkpoint_every: int | None = key_field(
        None, "Also write `last.ckpt` every so many steps, for epochs that last hours.", at_least(1)
    )
    checkpoint_minutes: float | None = key_field(
        10.0,
        "Also write `last.ckpt` when the last one is so many minutes old; null for at the end of an epoch alone.",
        finite_above(0, "a number above 0, or null for none"),
    )
    keep_checkpoints: int = key_field(
        2, "How many of the newest checkpoints stay: `last.ckpt`, `last-1.ckpt` before it, and so on.", at_least(1)
    )
    keep_every: int | None = key_field(
        None, "Also keep the checkpoint of every so many epochs for good, as `epoch-0010.ckpt`.", at_least(1)
    )
    precision: Literal["fp32", "bf16", "fp16"] = key_field(
        "fp32",
        "The type of the large products: `bf16` or `fp16` by automatic mixed precision (`fp16` with loss scaling); "
        "weights, losses and what is exported stay float32.",
    )
    accumulate_grad_batches: int = key_field(
        1,
        "Batches of `data.batch_size` that make one step, as if it were one batch so many times as large.",
        at_least(1),
    )
    gradient_clip_val: float | None = key_field(
        None, "Limit the gradients of each step to this.", finite_above(0, "a number above 0, or null for none")
    )
    gradient_clip_algorithm: Literal["norm", "value"] = key_field(
        "norm", "Whether it limits the norm of all gradients together, or each value."
    )
    divergence_threshold: float | None = key_field(
        None,
        "End the run as failed when the training loss between two log points is above this; NaN and infinity always "
        "do.",
        finite_above(0, "a number above 0, or null for none"),
    )
    early_stopping: EarlyStoppingConfig = key_field(EarlyStoppingConfig(), "See `trainer.early_stopping`.")
    device: str = key_field("auto", "`auto` (cuda, then mps, then cpu), or a torch device such as `cpu` or `cuda:1`.")
    channels_last: Auto | bool = key_field(
        False,
        "Keep images and weights of convolutions with the channels last in memory: the same arithmetic, faster on most "
        "hardware. `auto` times a few steps of both.",
    )
    compile: Auto | bool = key_field(
        False,
        "Compile the network with `torch.compile`; takes a minute at the start. `auto` tries it where the run is long "
        "enough to pay for that.",
    )
    threads: Auto | int | None = key_field(
        None,
        "CPU threads of torch; by default torch's own choice, `auto` times a few steps. The same number is needed for "
        "the same bits.",
        at_least(1),
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
    requeue: str | None = key_field(
        None,
        "A shell command for schedulers that warn before they kill, such as `scontrol requeue $SLURM_JOB_ID`: run "
        "after the checkpoint that SIGUSR1 or SIGTERM asked for, with the run's directory in `$SIGHTLINE_RUN`.",
    )


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is made from. `TrainConfig()` trains the embedded digits."""

    model: str | None = key_field(
        None,
        "A network by one word: `timm/resnet18`, `torchvision/resnet18`, or the dotted name of a class. It becomes "
        "`module.network`, whose further arguments stay.",
    )
    pretrained: bool | None = key_field(None, "Short for `module.pretrained`.")
    weights: str | None = key_field(None, "Short for `module.weights`.")
    seed: int = key_field(
        0,
        "All randomness is a function of it: initial weights, splits, order, augmentation, dropout.",
        at_least(0),
        BELOW_2_63,
    )
    run: RunConfig = key_field(RunConfig(), "See `run`.")
    data: DataConfig = key_field(DataConfig(), "See `data`.")
    module: ModuleConfig = key_field(ModuleConfig(), "See `module`.")
    trainer: TrainerConfig = key_field(TrainerConfig(), "See `trainer`.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], also: tuple[str, ...] = ()) -> TrainConfig:
        """Checks a plain mapping against the schema. `also` are further names to suggest at the top level.

        Raises ConfigError naming the key, what was found, what was expected and the nearest valid name."""
        config: TrainConfig = build_config(cls, expand(values), also=also)
        _check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """A plain, YAML-ready dict that `from_dict` turns back into an equal config."""
        return typing.cast(dict[str, Any], to_plain(self))


def walk() -> list[tuple[str, dataclasses.Field[Any]]]:
    """Every leaf of the schema as (dotted key, field), in order; the configuration reference is made from it."""
    return typed.walk(TrainConfig)


_CLASS_LOSSES = (
    "CrossEntropyLoss", "NLLLoss", "FocalLoss", "ProbabilityNLL", "BCEWithLogitsLoss", "MultiMarginLoss",
    "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "LabelSmoothingCrossEntropy", "SoftTargetCrossEntropy",
)  # fmt: skip


def _check(config: TrainConfig) -> None:
    """Raises ConfigError for a value out of its range, and for keys that contradict each other."""
    for key, item in walk():
        value: Any = config
        for name in key.split(".") if item.metadata["ranges"] else ():
            value = getattr(value, name)
        for allowed in item.metadata["ranges"]:
            allowed.check(key, value)
    data = config.data
    if data.source == "digits" and data.root is not None:
        raise ConfigError(
            f"data.root: the embedded digits have no directory, found {data.root!r}. For your own images leave "
            f"data.source at auto, or choose data=folder or data=csv."
        )
    if isinstance(data.preprocess.crop_pct, float) and data.preprocess.resize == "pad":
        raise ConfigError(
            "data.preprocess.crop_pct: resize 'pad' keeps the whole image, so there is nothing to cut; set "
            "data.preprocess.crop_pct=null, or resize=crop."
        )
    _check_source(config)
    if data.target == "number":
        _check_number(config)
    _check_training(config)
    _check_nodes(config)


def _check_training(config: TrainConfig) -> None:
    """Keys of the training that contradict each other."""
    module, trainer = config.module, config.trainer
    weights = module.class_weights
    if isinstance(weights, list) and weights and not any(weights):
        raise ConfigError(f"module.class_weights: expected a number above 0 for some class, found {weights}.")
    if module.weights_by != "name" and module.weights is None:
        raise ConfigError(
            "module.weights_by: it is about the file that module.weights names, and there is none; leave it out."
        )
    if module.pretrained and module.weights is not None:
        raise ConfigError(
            "module.weights: a network starts from one set of weights, and module.pretrained asks for the published "
            "ones; leave one of the two out."
        )
    if module.freeze_epochs >= trainer.max_epochs and module.freeze_epochs:
        raise ConfigError(
            f"module.freeze_epochs: the head alone would be trained for all {trainer.max_epochs} epochs; set it below "
            f"trainer.max_epochs, or name what is never trained in module.freeze."
        )
    for position, group in enumerate(module.param_groups):
        if not isinstance(group.get("match"), str) or len(group) < 2:
            raise ConfigError(
                f"module.param_groups[{position}]: expected 'match' with a name or pattern of parameters, and at least "
                f"one argument of the optimiser, such as {{match: 'head.*', lr: 0.01}}, found {group}."
            )
    if module.class_weights is not None and config.data.sampler == "balanced":
        raise ConfigError(
            "module.class_weights: data.sampler=balanced shows every class equally often already; with both, rare "
            "classes would count twice. Leave one of the two out."
        )


def _check_source(config: TrainConfig) -> None:
    data = config.data
    if (data.source == "torchvision") != (data.dataset is not None):
        raise ConfigError(
            "data.dataset: data.source=torchvision needs the name of its data set, such as data.dataset=CIFAR10."
            if data.dataset is None
            else f"data.dataset: '{data.dataset}' is looked for with data.source=torchvision alone."
        )


def _check_number(config: TrainConfig) -> None:
    """What is about classes alone says nothing of numbers; left standing it would promise what nobody does."""
    data, module = config.data, config.module
    given: dict[str, tuple[bool, str]] = {
        "data.classes": (data.classes is not None, "leave it out"),
        "data.sampler": (data.sampler == "balanced", "set data.sampler=shuffle"),
        "module.class_weights": (module.class_weights is not None, "leave it out"),
        "module.top_k": (bool(module.top_k), "leave it out; mse and mae are measured"),
        "module.per_class": (module.per_class, "leave it out; mse and mae are measured"),
        "module.outputs": (module.outputs != "auto", "leave it at auto"),
    }
    for key, (wrong, advice) in given.items():
        if wrong:
            raise ConfigError(f"{key}: with data.target=number there are no classes; {advice}.")
    target = module.loss.get("_target_", module.loss.get("class"))
    name = str(getattr(target, "__name__", target)).rpartition(".")[2]
    if name in _CLASS_LOSSES:
        raise ConfigError(
            f"module.loss: {name} compares classes, and with data.target=number labels are numbers. Leave it out for "
            f"torch.nn.MSELoss, or take torch.nn.L1Loss or torch.nn.SmoothL1Loss."
        )


def _check_nodes(config: TrainConfig) -> None:
    module = config.module
    for key, node in nodes_of("data.augment.transforms", config.data.augment.transforms):
        if not ("_target_" in node or "class" in node):
            raise ConfigError(f"{key}: expected a node with '_target_', found {describe_found(node)}.")
    nodes = {"module.loss": module.loss, "module.optimizer": module.optimizer}
    nodes |= nodes_of("module.lr_scheduler", module.lr_scheduler)
    nodes |= {f"module.metrics.{name}": node for name, node in module.metrics.items()}
    if "layers" in module.network:
        layers = module.network["layers"]
        extra = set(module.network) - {"layers"}
        if extra:
            raise ConfigError(f"module.network: 'layers' stands alone; remove {join_names(sorted(extra))}.")
        if not isinstance(layers, list) or not layers:
            raise ConfigError(
                f"module.network.layers: expected a list of nodes with '_target_', found {describe_found(layers)}."
            )
        nodes |= nodes_of("module.network.layers", layers)
    else:
        nodes["module.network"] = module.network
    for key, node in nodes.items():
        if not isinstance(node, Mapping) or not ("_target_" in node or "class" in node):
            raise ConfigError(f"{key}: expected a node with '_target_', found {describe_found(node)}.")
