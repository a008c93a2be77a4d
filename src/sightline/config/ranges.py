"""What a type cannot say about a config: ranges, and keys that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sightline.config.typed import found_words
from sightline.errors import ConfigError, listing, spelled

if TYPE_CHECKING:
    from sightline.config.schema import AugmentConfig, ModuleConfig, TrainConfig


_CLASS_LOSSES = (
    "CrossEntropyLoss", "NLLLoss", "FocalLoss", "ProbabilityNLL", "BCEWithLogitsLoss", "MultiMarginLoss",
    "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "LabelSmoothingCrossEntropy", "SoftTargetCrossEntropy",
)  # fmt: skip


def check_ranges(config: TrainConfig) -> None:
    """Raises ConfigError naming the key, what was found and what was expected."""
    data, trainer = config.data, config.trainer
    at_least: list[tuple[str, float | int | None, int]] = [
        ("seed", config.seed, 0), ("data.val", data.val, 0), ("data.test", data.test, 0),
        ("data.batch_size", data.batch_size, 1),
        ("data.eval_batch_size", None if data.eval_batch_size == "auto" else data.eval_batch_size, 1),
        ("data.augment.shift", data.augment.shift, 0), ("trainer.max_epochs", trainer.max_epochs, 1),
        ("trainer.eval_every", trainer.eval_every, 1), ("trainer.log_every", trainer.log_every, 1),
        ("trainer.checkpoint_every", trainer.checkpoint_every, 1),
        ("trainer.keep_checkpoints", trainer.keep_checkpoints, 1), ("trainer.keep_every", trainer.keep_every, 1),
        ("trainer.threads", None if trainer.threads == "auto" else trainer.threads, 1),
        ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1),
        ("trainer.early_stopping.patience", trainer.early_stopping.patience, 1),
        ("trainer.early_stopping.min_delta", trainer.early_stopping.min_delta, 0),
        ("module.freeze_epochs", config.module.freeze_epochs, 0), ("module.mixup", config.module.mixup, 0),
        ("module.cutmix", config.module.cutmix, 0),
        *(("module.top_k", k, 1) for k in config.module.top_k),
        ("data.preprocess.background", data.preprocess.background, 0), ("data.prefetch", data.prefetch, 0),
        ("data.workers", None if data.workers == "auto" else data.workers, 0),
        ("data.cache_limit", data.cache_limit, 0),
    ]  # fmt: skip
    if config.seed >= 2**63:
        raise ConfigError(key="seed", expected="a number below 2**63", found=config.seed)
    for name, value, low in at_least:
        if value is not None and not value >= low:
            raise ConfigError(key=name, expected=f"a number of at least {low}", found=value)
    given: dict[str, Any] = {"data.val": [data.val], "data.test": [data.test]}
    given |= {f"data.preprocess.{key}": getattr(data.preprocess, key) for key in ("mean", "std")}
    for name, values in given.items():
        if not isinstance(values, str) and not all(math.isfinite(value) for value in values):
            raise ConfigError(key=name, expected="a number", found=values)
    for name, value in (("val", data.val), ("test", data.test)):
        if value > 1 and value != int(value):
            raise ConfigError(
                f"{spelled(f'data.{name}')}: expected a part below 1 or a whole number of images, found {value}."
            )
    if data.source == "digits" and data.root is not None:
        raise ConfigError(
            f"data.root: the embedded digits have no directory, found {data.root!r}. For your own pictures leave "
            f"data.source at auto, or choose data=folder or data=csv."
        )
    if data.preprocess.background > 255:
        raise ConfigError(
            key="data.preprocess.background", expected="a gray level of 0 to 255", found=data.preprocess.background
        )
    size = data.preprocess.size
    sides = [] if size == "auto" else [size] if isinstance(size, int) else list(size)
    if size != "auto" and (len(sides) not in (1, 2) or any(int(side) < 1 for side in sides)):
        raise ConfigError(
            key="data.preprocess.size", expected="one side or [height, width] of at least 1 pixel", found=size
        )
    share = data.preprocess.crop_pct
    if not (share == "auto" or share is None or 0.1 <= share <= 2):
        raise ConfigError(
            key="data.preprocess.crop_pct", expected="a share of 0.1 to 2, such as 0.875, or null", found=share
        )
    if isinstance(share, float) and data.preprocess.resize == "pad":
        raise ConfigError(
            "data.preprocess.crop_pct: resize 'pad' keeps the whole image, so there is nothing to cut; set "
            "data.preprocess.crop_pct=null, or resize=crop."
        )
    std = data.preprocess.std
    if not isinstance(std, str) and any(value <= 0 for value in std):
        raise ConfigError(f"{spelled('data.preprocess.std')}: every value must be above 0, found {std}.")
    _check_source(config)
    if data.target == "number":
        _check_number(config)
    _check_training(config)
    check_augment(config.data.augment)
    _check_nodes(config.module)


def _check_training(config: TrainConfig) -> None:
    module, trainer = config.module, config.trainer
    clip = trainer.gradient_clip_val
    if clip is not None and not 0 < clip < math.inf:
        raise ConfigError(f"trainer.gradient_clip_val: expected a number above 0, or null for none, found {clip}.")
    for name in ("checkpoint_minutes", "divergence_threshold"):
        value = getattr(trainer, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"trainer.{name}: expected a number above 0, or null for none, found {value}.")
    if module.ema is not None and not 0 < module.ema < 1:
        raise ConfigError(
            f"module.ema: expected a decay between 0 and 1, such as 0.999, or null for none, found {module.ema}."
        )
    if module.head_lr is not None and not 0 < module.head_lr < math.inf:
        raise ConfigError(f"module.head_lr: expected a number above 0, or null, found {module.head_lr}.")
    if not 0 < module.layer_decay <= 1:
        raise ConfigError(
            f"module.layer_decay: expected a factor above 0 and at most 1, such as 0.75, found {module.layer_decay}."
        )
    if not 0 <= module.mix_probability <= 1:
        raise ConfigError(
            f"module.mix_probability: expected a probability between 0 and 1, found {module.mix_probability}."
        )
    for name, alpha in (("mixup", module.mixup), ("cutmix", module.cutmix)):
        if not math.isfinite(alpha):
            raise ConfigError(f"module.{name}: expected a number, found {alpha}.")
    weights = module.class_weights
    if isinstance(weights, list) and not all(0 <= weight < math.inf for weight in weights):
        raise ConfigError(f"module.class_weights: expected numbers of at least 0, found {weights}.")
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


def check_augment(augment: AugmentConfig) -> None:
    """Raises ConfigError for an augmentation that is out of its range."""
    limits: dict[str, tuple[float, float]] = dict.fromkeys(("flip", "vertical_flip", "erase"), (0, 1))
    limits |= {"translate": (0, 1), "brightness": (0, 10), "contrast": (0, 10), "saturation": (0, 10)}
    limits |= {"rotate": (0, 180), "shear": (0, 89), "rand_magnitude": (0, 30), "rand_ops": (1, 20)}
    limits |= {"cutout": (0, math.inf)}
    for name, (low, high) in limits.items():
        value = getattr(augment, name)
        if not low <= value <= high:
            kind = "a probability" if name in ("flip", "vertical_flip", "erase") else "a number"
            upper = f"between {low} and {high}" if math.isfinite(high) else f"of at least {low}"
            raise ConfigError(f"{spelled(f'data.augment.{name}')}: expected {kind} {upper}, found {value}.")
    for name, high in (("crop", 1), ("crop_ratio", math.inf), ("scale", math.inf)):
        pair = getattr(augment, name)
        if pair is not None and not (len(pair) == 2 and 0 < pair[0] <= pair[1] <= high and pair[1] < math.inf):
            most = " and at most 1" if high == 1 else ""
            raise ConfigError(
                f"{spelled(f'data.augment.{name}')}: expected two numbers [least, most] above 0{most}, found {pair}."
            )
    for position, node in enumerate(augment.transforms):
        if not ("_target_" in node or "class" in node):
            raise ConfigError(
                f"data.augment.transforms[{position}]: expected a node with '_target_', found {found_words(node)}."
            )


def _check_nodes(module: ModuleConfig) -> None:
    scheduler = module.lr_scheduler
    schedulers = scheduler if isinstance(scheduler, list) else [scheduler] if scheduler else []
    nodes = {"module.loss": module.loss, "module.optimizer": module.optimizer}
    nodes |= {
        f"module.lr_scheduler[{i}]" if isinstance(scheduler, list) else "module.lr_scheduler": node
        for i, node in enumerate(schedulers)
    }
    nodes |= {f"module.metrics.{name}": node for name, node in module.metrics.items()}
    if "layers" in module.network:
        layers = module.network["layers"]
        extra = set(module.network) - {"layers"}
        if extra:
            raise ConfigError(f"module.network: 'layers' stands alone; remove {listing(sorted(extra))}.")
        if not isinstance(layers, list) or not layers:
            raise ConfigError(
                f"module.network.layers: expected a list of nodes with '_target_', found {found_words(layers)}."
            )
        nodes |= {f"module.network.layers[{i}]": node for i, node in enumerate(layers)}
    else:
        nodes["module.network"] = module.network
    for key, node in nodes.items():
        if not isinstance(node, Mapping) or not ("_target_" in node or "class" in node):
            raise ConfigError(f"{key}: expected a node with '_target_', found {found_words(node)}.")
