"""The complete configuration as dataclasses: every key with its type, default, range and documentation.

The configuration reference is made from it. It does not import torch, so a typo is reported at once."""

from __future__ import annotations  # `hydra_config` compares the types of fields as strings

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
    """How an image file becomes the input of the network. Stored with the model, and used for every prediction."""

    size: Auto | int | list[int] = key_field(
        "auto",
        "Height and width in pixels, or one number for a square. `auto` is the size of the first training image, "
        "which all others must have, or with pretrained weights the size they were trained with.",
        IMAGE_SIZE,
    )
    channels: Auto | Literal[1, 3] = key_field(
        "auto",
        "1 for gray, 3 for RGB. `auto` is the number of channels of the first training image or of the pretrained "
        "weights.",
    )
    resize: Literal["auto", "stretch", "crop", "pad"] = key_field(
        "auto",
        "How an image of another shape is brought to `size`: `stretch` ignores the aspect ratio, `crop` scales the "
        "shorter side and cuts out the centre, `pad` scales the longer side and fills with `background`. `auto` is "
        "the mode that pretrained weights were evaluated with, else `stretch`.",
    )
    crop_pct: Auto | float | None = key_field(
        "auto",
        "Scale to `size` / `crop_pct`, rounded down, and cut `size` out of the centre (0.875 scales to 256 for "
        "224); null cuts first and scales once. `auto` is the value that pretrained weights were evaluated with, "
        "else null.",
        between(0.1, 2, "a number in [0.1, 2], such as 0.875, or null"),
    )
    interpolation: Literal["auto", "nearest", "bilinear", "bicubic", "lanczos"] = key_field(
        "auto",
        "The resampling filter, antialiased except for `nearest`. `auto` is the filter that pretrained weights were "
        "trained with, else `bilinear`.",
    )
    background: int = key_field(
        255,
        "The gray level, 0 to 255, behind transparent pixels and around padded images.",
        at_least(0),
        between(0, 255),
    )
    mean: Auto | list[float] = key_field(
        "auto",
        "Subtracted from each channel, in units of 0..1. `auto` is measured on the training split or comes with the "
        "pretrained weights.",
        FINITE,
    )
    std: Auto | list[float] = key_field(
        "auto",
        "Each channel is divided by it, in units of 0..1. `auto` is measured on the training split or comes with "
        "the pretrained weights.",
        finite_above(0, "numbers > 0"),
    )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, drawn per sample and epoch. Never applied to other splits."""

    flip: float = key_field(0.0, "Probability of a horizontal flip.", PROBABILITY)
    vertical_flip: float = key_field(0.0, "Probability of a vertical flip.", PROBABILITY)
    shift: int = key_field(
        1, "Shift by up to this many pixels in each direction and fill with black (pad and crop).", at_least(0)
    )
    crop: list[float] | None = key_field(
        None,
        "Cut out a random part and scale it to `data.preprocess.size` (random resized crop). The value is the range "
        "of its area as a fraction of the image, [min, max]; [0.08,1] suits large images.",
        positive_interval(most=1),
    )
    crop_ratio: list[float] = key_field(
        [0.75, 4 / 3], "The range of the aspect ratio, width / height, of this part.", positive_interval()
    )
    rotate: float = key_field(0.0, "Rotate by up to this many degrees in either direction.", between(0.0, 180.0))
    translate: float = key_field(0.0, "Move by up to this fraction of each side.", between(0.0, 1.0))
    scale: list[float] = key_field([1.0, 1.0], "Scale by a factor in this range, [min, max].", positive_interval())
    shear: float = key_field(0.0, "Shear by up to this many degrees in either direction.", between(0.0, 89.0))
    brightness: float = key_field(
        0.0, "Multiply the brightness by a factor in [1 - value, 1 + value].", between(0.0, 10.0)
    )
    contrast: float = key_field(0.0, "The same for the contrast.", between(0.0, 10.0))
    saturation: float = key_field(0.0, "The same for the saturation.", between(0.0, 10.0))
    policy: Literal["trivial", "rand"] | None = key_field(
        None, "A published policy that combines many operations: `trivial` (TrivialAugment) or `rand` (RandAugment)."
    )
    rand_ops: int = key_field(2, "The number of operations that RandAugment applies to each image.", between(1, 20))
    rand_magnitude: int = key_field(9, "The strength of the operations of RandAugment, 0 to 30.", between(0, 30))
    erase: float = key_field(0.0, "Probability of blackening a random rectangle (random erasing).", PROBABILITY)
    cutout: int = key_field(
        0, "Blacken a square of this side length in pixels at a random position; 0 is off.", at_least(0)
    )
    transforms: list[Node] = key_field(
        [],
        "Nodes of further transforms, from torchvision or custom, each called with one image, a uint8 tensor "
        "[C,H,W]. They are slower than the transforms above, which process batches.",
    )


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from, and how they are split and loaded."""

    source: Literal["auto", "digits", "folder", "csv", "parquet", "idx", "npz", "torchvision"] = key_field(
        "auto",
        "`digits` (embedded), `folder` (one folder per class), `csv` (a table beside the images), `parquet` (tables "
        "that contain the images), `idx` (the files of MNIST), `npz` (NumPy arrays), `torchvision` (one of its "
        "datasets by name). `auto` detects the source from `root`; without a root it is `digits`.",
    )
    root: str | None = key_field(
        None,
        "The data directory, a zip or tar file of one, or a single table or array file. Folders named train, val "
        "and test in it are the splits.",
    )
    dataset: str | None = key_field(None, "With `source=torchvision`: the name of the dataset, such as CIFAR10.")
    download: bool = key_field(False, "With `source=torchvision`: download the dataset to `root` if it is missing.")
    csv: str | None = key_field(None, "The CSV file, relative to `root`; needed only if there are several.")
    images: str | None = key_field(
        None,
        "The folder that the file names in the CSV are relative to, itself relative to `root`; by default the CSV's "
        "own folder.",
    )
    image_column: str | None = key_field(
        None, "The CSV column of file names; by default `files`, `image name`, `file`, `filename` or `image`."
    )
    label_column: str | None = key_field(
        None, "The CSV column of labels; by default `type`, `label`, `target` or `class`."
    )
    target: Literal["class", "number"] = key_field(
        "class",
        "What a label is: `class`, the name or index of a class, or `number`, a number to predict, such as an age "
        "(regression). With `number` the network has one output, the default loss is `torch.nn.MSELoss`, and the "
        "metrics include `mse` and `mae`.",
    )
    split_column: str | None = key_field(
        None, "The column with `train`, `val` or `test` for each row, if the table defines the splits."
    )
    group_column: str | None = key_field(
        None, "The column of groups, such as patients or scenes. All samples of a group are in the same split."
    )
    classes: int | list[str] | None = key_field(
        None,
        "The class names in order (labels are then these names or their indices from 0), or the number of classes "
        "for labels 0..n-1. By default the labels that occur, numeric ones sorted as numbers.",
    )
    val: int | float = key_field(
        0.1,
        "How much of the training data to hold out if there is no validation split: a fraction (below 1) or a "
        "number of images (1 and above); 0 for none.",
        at_least(0.0),
        FRACTION_OR_COUNT,
    )
    test: int | float = key_field(
        0.2,
        "The same for the test split, which is taken first. Both are stratified by class and determined by the seed.",
        at_least(0.0),
        FRACTION_OR_COUNT,
    )
    on_bad: Literal["error", "skip"] = key_field(
        "error",
        "What to do with images that cannot be read: `error` stops and names them, `skip` skips them and lists them "
        "in the run and at its end. An image is never replaced by another one.",
    )
    store: Literal["auto", "pixels", "encoded"] = key_field(
        "auto",
        "How images are kept: decoded once (`pixels`), or encoded and decoded ahead of each step (`encoded`). "
        "`auto` is `pixels` up to 4 GiB of them; with `augment.crop` only for images of at most 64 x 64 pixels.",
    )
    cache: bool = key_field(
        True, "Keep the images in the cache directory, so that the next run does not decode them again."
    )
    cache_dir: str | None = key_field(
        None,
        "The cache directory; by default `$SIGHTLINE_CACHE`, else the user's cache directory. See `sightline cache`.",
    )
    cache_limit: float = key_field(
        50.0,
        "The maximum size of the cache in GiB. A new entry replaces those that have not been used for the longest "
        "time.",
        at_least(0.0),
    )
    workers: Auto | int = key_field(
        "auto",
        "Threads that prepare batches ahead of the step; `auto` is one per core, 0 prepares each batch when it is "
        "needed.",
        at_least(0),
    )
    prefetch: int = key_field(2, "How many batches are prepared ahead.", at_least(0))
    sampler: Literal["shuffle", "balanced"] = key_field(
        "shuffle",
        "Which training images an epoch contains: `shuffle`, each image once in random order, or `balanced`, as "
        "many images in total but equally many of each class. Rare classes then repeat images, and common ones use "
        "different images in each epoch.",
    )
    batch_size: int = key_field(
        64,
        "Images per training step. The last step of an epoch has the remaining images; a single remaining image is "
        "added to the step before it.",
        at_least(1),
    )
    drop_last: bool = key_field(
        False, "Drop the images of an epoch that do not fill a step. They are different images in every epoch."
    )
    eval_batch_size: Auto | int = key_field(
        "auto",
        "Images per step of evaluation and prediction. `auto` is the largest power of two, up to 256, for which the "
        "images and the largest activations of the network take at most 256 MiB.",
        at_least(1),
    )
    preprocess: PreprocessConfig = key_field(PreprocessConfig(), "See `data.preprocess`.")
    augment: AugmentConfig = key_field(AugmentConfig(), "See `data.augment`.")


@dataclass(frozen=True)
class ModuleConfig:
    """What is trained and how: network, loss, optimiser, learning-rate schedule, and metric of the best checkpoint."""

    network: Node = key_field(
        {"_target_": "sightline.models.networks.SmallCNN", "in_channels": "auto", "num_classes": "auto"},
        "A `_target_` node (torch.nn, torchvision.models, timm.create_model, or a custom class), or `layers`: a "
        "list of these nodes. `auto` stands for a value from the data: classes, channels, image size, and in a list "
        "of layers the width of the previous layer.",
    )
    outputs: Literal["auto", "logits", "probabilities"] = key_field(
        "auto", "What the network outputs; `auto` checks its output for a test input."
    )
    loss: Node = key_field(
        {"_target_": "torch.nn.CrossEntropyLoss"},
        "A node for the loss, called with (output [B,classes], target [B]). With `data.target=number` the default "
        "is `torch.nn.MSELoss`, called with (output [B,1], target [B,1]).",
    )
    optimizer: Node = key_field(
        {"_target_": "torch.optim.AdamW", "lr": 0.003, "weight_decay": 0.01},
        "A node for any torch optimiser; the parameters are passed to it.",
    )
    lr_scheduler: Node | list[Node] | None = key_field(
        {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": "auto", "total_steps": "auto"},
        "A node, or a list of nodes, for any torch scheduler; the optimiser is passed to it. Additional keys are "
        "`interval` (`step` or `epoch`) and, for ReduceLROnPlateau, `monitor`. `total_steps`, `T_max` and "
        "`steps_per_epoch` may be `auto` (the length of the run), and so may `max_lr` (the optimiser's `lr`).",
    )
    weights: str | None = key_field(
        None,
        "A file of weights to start from (`.safetensors`, or a checkpoint of torch or timm), or a run directory. "
        "All layers but the head are loaded, and the head if its classes match.",
    )
    weights_by: Literal["name", "order"] = key_field(
        "name",
        "How the tensors of that file are matched: by their names, or by their order, for a file of the same "
        "network with other names.",
    )
    pretrained: bool = key_field(
        False, "Start from the published weights of a timm or torchvision network, with a new head for these classes."
    )
    freeze_epochs: int = key_field(0, "Train only the head for this many epochs first, then all layers.", at_least(0))
    freeze: list[str] = key_field(
        [],
        "Layers that are never trained, by name or pattern (`features.0`, `layer[12].*`). Their running statistics "
        "do not change either.",
    )
    freeze_statistics: bool = key_field(
        False,
        "Use and keep the running statistics of the initial weights in batch normalisation, in training too; its "
        "scales and shifts are trained. Suited to small batches and to weights from another dataset.",
    )
    layer_decay: float = key_field(
        1.0,
        "The learning rate of each block is this factor times that of the block above it, starting at the head. A "
        "factor below 1 changes the early layers of a pretrained network less.",
        Range(lambda value: 0 < value <= 1, "a number in (0, 1], such as 0.75"),
    )
    head_lr: float | None = key_field(
        None,
        "The learning rate of the head, if it differs from the optimiser's `lr`. A new head needs larger changes "
        "than pretrained weights.",
        finite_above(0, "a number > 0, or null"),
    )
    param_groups: list[Node] = key_field(
        [],
        "Arguments of the optimiser for parts of the network: `{match: 'head.*', lr: 0.01}`. The first entry that "
        "matches a parameter applies.",
    )
    decay_1d: bool = key_field(
        True, "Whether weight decay also applies to biases and to the scales of normalisation layers."
    )
    class_weights: Auto | list[float] | None = key_field(
        None,
        "The weight of each class in the loss, in class order. `auto` is inversely proportional to the class's "
        "share of the training images.",
        at_least(0, "numbers >= 0"),
        FINITE,
    )
    mixup: float = key_field(
        0.0,
        "Blend pairs of training images, with weights drawn from Beta(mixup, mixup); 0 is off.",
        at_least(0.0),
        FINITE,
    )
    cutmix: float = key_field(
        0.0,
        "Paste a rectangle of one training image into another, with its area drawn from Beta(cutmix, cutmix); 0 is "
        "off.",
        at_least(0.0),
        FINITE,
    )
    mix_probability: float = key_field(
        1.0,
        "The fraction of batches that are mixed. With both mixup and cutmix, each mixed batch uses one of them at "
        "random.",
        PROBABILITY,
    )
    ema: float | None = key_field(
        None,
        "Keep an exponential moving average (EMA) of the weights with this decay per step (0.99 to 0.9999), and "
        "evaluate and export it.",
        Range(lambda value: 0 < value < 1, "a number in (0, 1), such as 0.999, or null"),
    )
    ema_warmup: bool = key_field(
        True, "Let the EMA follow the weights faster at first, with a decay of at most (1 + step) / (10 + step)."
    )
    top_k: list[int] = key_field(
        [], "Also measure how often the correct class is among the first k, for each of these k.", at_least(1)
    )
    per_class: bool = key_field(False, "Also record precision, recall and F1 of every class at each evaluation.")
    metrics: dict[str, Node] = key_field(
        {},
        "Extra metrics by name: nodes of torchmetrics objects, such as `{auroc: {_target_: torchmetrics.AUROC, "
        "task: multiclass, num_classes: auto}}`.",
    )
    monitor: str = key_field("val_loss", "The metric that selects the best checkpoint, `<split>_<metric>`.")
    monitor_mode: Literal["auto", "min", "max"] = key_field(
        "auto",
        "Whether lower or higher is better. `auto` derives it from the metric or its name; if that is not possible, "
        "this key is required.",
    )


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """When to end a run that no longer improves. The best epoch is exported in any case."""

    patience: int | None = key_field(
        None, "End after this many evaluations in a row without an improvement; null never does.", at_least(1)
    )
    min_delta: float = key_field(0.0, "An improvement must be larger than this.", at_least(0.0))
    monitor: str | None = key_field(None, "The metric to monitor; by default `module.monitor`.")
    monitor_mode: Literal["auto", "min", "max"] = key_field(
        "auto", "Whether lower or higher values are better, see `module.monitor_mode`."
    )


@dataclass(frozen=True)
class TrainerConfig:
    """How long to train, how often to evaluate, log and save, and on which device."""

    max_epochs: int = key_field(30, "The number of passes over the training data.", at_least(1))
    eval_every: int = key_field(1, "Evaluate after every n epochs, and always after the last one.", at_least(1))
    log_every: int = key_field(50, "Write a log point, and check that the loss is finite, every n steps.", at_least(1))
    checkpoint_every: int | None = key_field(
        None, "Also write `last.ckpt` every n steps, for epochs that last hours.", at_least(1)
    )
    checkpoint_minutes: float | None = key_field(
        10.0,
        "Also write `last.ckpt` when the previous one is n minutes old; null writes it only at the end of an epoch.",
        finite_above(0, "a number > 0, or null"),
    )
    keep_checkpoints: int = key_field(
        2, "How many of the newest checkpoints are kept: `last.ckpt`, `last-1.ckpt` before it, and so on.", at_least(1)
    )
    keep_every: int | None = key_field(
        None, "Also keep the checkpoint of every n epochs permanently, as `epoch-0010.ckpt`.", at_least(1)
    )
    precision: Literal["fp32", "bf16", "fp16"] = key_field(
        "fp32",
        "The dtype of matrix products and convolutions: `bf16` and `fp16` use automatic mixed precision (`fp16` "
        "with loss scaling). Weights, losses and the exported model stay float32.",
    )
    accumulate_grad_batches: int = key_field(
        1,
        "The number of batches of `data.batch_size` that make up one step, equivalent to one batch that many times "
        "as large.",
        at_least(1),
    )
    gradient_clip_val: float | None = key_field(
        None, "Clip the gradients of each step to this value.", finite_above(0, "a number > 0, or null")
    )
    gradient_clip_algorithm: Literal["norm", "value"] = key_field(
        "norm", "Whether to clip the norm of all gradients together, or each value."
    )
    divergence_threshold: float | None = key_field(
        None,
        "End the run as failed if the training loss between two log points exceeds this. NaN and infinity always "
        "end it.",
        finite_above(0, "a number > 0, or null"),
    )
    early_stopping: EarlyStoppingConfig = key_field(EarlyStoppingConfig(), "See `trainer.early_stopping`.")
    device: str = key_field("auto", "`auto` (cuda, then mps, then cpu), or a torch device such as `cpu` or `cuda:1`.")
    channels_last: Auto | bool = key_field(
        False,
        "Store images and convolution weights in the channels-last memory format: the same arithmetic, faster on "
        "most hardware. `auto` times a few steps of both.",
    )
    compile: Auto | bool = key_field(
        False,
        "Compile the network with `torch.compile`, which takes a minute at the start. `auto` tries it if the run is "
        "long enough to save time.",
    )
    threads: Auto | int | None = key_field(
        None,
        "CPU threads of torch; null is torch's own choice, `auto` times a few steps. Bit-identical results need the "
        "same number.",
        at_least(1),
    )
    progress: bool = key_field(
        True, "Show a progress bar on a terminal, or one line per epoch elsewhere, and tables at the end."
    )
    deterministic: bool = key_field(
        True,
        "Use operations that give the same bits every time; torch warns about one that has no deterministic version.",
    )


@dataclass(frozen=True)
class RunConfig:
    """The run directory, and the command to run when a scheduler ends the run."""

    dir: str = key_field("runs", "The parent directory of the runs.")
    name: str | None = key_field(
        None, "The name of the run; by default the name of the data and the time. An existing run is never overwritten."
    )
    requeue: str | None = key_field(
        None,
        "A shell command for schedulers that send a signal before they end a job, such as `scontrol requeue "
        "$SLURM_JOB_ID`. It is run after the checkpoint that SIGUSR1 or SIGTERM requests, with the run directory in "
        "`$SIGHTLINE_RUN`.",
    )


@dataclass(frozen=True)
class TrainConfig:
    """The complete configuration of a training run. `TrainConfig()` trains on the embedded digits."""

    model: str | None = key_field(
        None,
        "Short form of the network: `timm/resnet18`, `torchvision/resnet18`, or the dotted name of a class. It sets "
        "`module.network` and keeps the other arguments that are set there.",
    )
    pretrained: bool | None = key_field(None, "Short for `module.pretrained`.")
    weights: str | None = key_field(None, "Short for `module.weights`.")
    seed: int = key_field(
        0, "The seed of all randomness: initial weights, splits, order, augmentation, dropout.", at_least(0), BELOW_2_63
    )
    run: RunConfig = key_field(RunConfig(), "See `run`.")
    data: DataConfig = key_field(DataConfig(), "See `data`.")
    module: ModuleConfig = key_field(ModuleConfig(), "See `module`.")
    trainer: TrainerConfig = key_field(TrainerConfig(), "See `trainer`.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], also: tuple[str, ...] = ()) -> TrainConfig:
        """Builds a config from a plain mapping. `also` are further names to suggest at the top level.

        Raises ConfigError naming the key, what was found, what is expected and the closest valid name."""
        config: TrainConfig = build_config(cls, expand(values), also=also)
        _check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns a plain dict, ready for YAML, that `from_dict` converts back to an equal config."""
        return typing.cast(dict[str, Any], to_plain(self))


def walk() -> list[tuple[str, dataclasses.Field[Any]]]:
    """Returns every leaf of the schema as (dotted key, field), in order."""
    return typed.walk(TrainConfig)


_CLASS_LOSSES = (
    "CrossEntropyLoss", "NLLLoss", "FocalLoss", "ProbabilityNLL", "BCEWithLogitsLoss", "MultiMarginLoss",
    "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "LabelSmoothingCrossEntropy", "SoftTargetCrossEntropy",
)  # fmt: skip


def _check(config: TrainConfig) -> None:
    """Raises ConfigError for a value out of its range and for keys that contradict each other."""
    for key, item in walk():
        value: Any = config
        for name in key.split(".") if item.metadata["ranges"] else ():
            value = getattr(value, name)
        for allowed in item.metadata["ranges"]:
            allowed.check(key, value)
    data = config.data
    if data.source == "digits" and data.root is not None:
        raise ConfigError(
            f"data.root: data.source=digits has no directory, found {data.root!r}. For your own images set "
            f"data.source=auto, or choose data=folder or data=csv."
        )
    if isinstance(data.preprocess.crop_pct, float) and data.preprocess.resize == "pad":
        raise ConfigError(
            "data.preprocess.crop_pct: with data.preprocess.resize=pad nothing is cut. Set "
            "data.preprocess.crop_pct=null or data.preprocess.resize=crop."
        )
    _check_source(config)
    if data.target == "number":
        _check_number(config)
    _check_training(config)
    _check_nodes(config)


def _check_training(config: TrainConfig) -> None:
    """Raises ConfigError for keys of `module` and `trainer` that contradict each other."""
    module, trainer = config.module, config.trainer
    weights = module.class_weights
    if isinstance(weights, list) and weights and not any(weights):
        raise ConfigError(f"module.class_weights: expected a number > 0 for at least one class, found {weights}.")
    if module.weights_by != "name" and module.weights is None:
        raise ConfigError(
            "module.weights_by: it applies to the file in module.weights, which is not set. Set module.weights, or "
            "remove this key."
        )
    if module.pretrained and module.weights is not None:
        raise ConfigError(
            "module.weights: a network starts from one set of weights, but module.pretrained is set too. Set only one "
            "of the two."
        )
    if module.freeze_epochs >= trainer.max_epochs and module.freeze_epochs:
        raise ConfigError(
            f"module.freeze_epochs: only the head would be trained in all {trainer.max_epochs} epochs. Set it below "
            f"trainer.max_epochs, or name the layers that are never trained in module.freeze."
        )
    for position, group in enumerate(module.param_groups):
        if not isinstance(group.get("match"), str) or len(group) < 2:
            raise ConfigError(
                f"module.param_groups[{position}]: expected 'match' with a name or pattern of parameters, and at least "
                f"one argument of the optimiser, such as {{match: 'head.*', lr: 0.01}}, found {group}."
            )
    if module.class_weights is not None and config.data.sampler == "balanced":
        raise ConfigError(
            "module.class_weights: data.sampler=balanced already shows every class equally often; with both, rare "
            "classes would count twice. Set only one of the two."
        )


def _check_source(config: TrainConfig) -> None:
    data = config.data
    if (data.source == "torchvision") != (data.dataset is not None):
        raise ConfigError(
            "data.dataset: data.source=torchvision needs the name of a dataset, such as data.dataset=CIFAR10."
            if data.dataset is None
            else f"data.dataset: '{data.dataset}' needs data.source=torchvision. Set that, or remove this key."
        )


def _check_number(config: TrainConfig) -> None:
    """Raises ConfigError for keys about classes, which would have no effect in a regression."""
    data, module = config.data, config.module
    class_keys: dict[str, tuple[bool, str]] = {
        "data.classes": (data.classes is not None, "Remove this key"),
        "data.sampler": (data.sampler == "balanced", "Set data.sampler=shuffle"),
        "module.class_weights": (module.class_weights is not None, "Remove this key"),
        "module.top_k": (bool(module.top_k), "Remove this key; mse and mae are measured"),
        "module.per_class": (module.per_class, "Remove this key; mse and mae are measured"),
        "module.outputs": (module.outputs != "auto", "Set module.outputs=auto"),
    }
    for key, (is_set, advice) in class_keys.items():
        if is_set:
            raise ConfigError(f"{key}: with data.target=number there are no classes. {advice}.")
    target = module.loss.get("_target_", module.loss.get("class"))
    name = str(getattr(target, "__name__", target)).rpartition(".")[2]
    if name in _CLASS_LOSSES:
        raise ConfigError(
            f"module.loss: {name} compares classes, but with data.target=number the labels are numbers. Remove this "
            f"key to use torch.nn.MSELoss, or set torch.nn.L1Loss or torch.nn.SmoothL1Loss."
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
            raise ConfigError(
                f"module.network: no other key may be set beside 'layers'; remove {join_names(sorted(extra))}."
            )
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
