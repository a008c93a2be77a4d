"""What a type cannot say about a config: the range of a value, which stands with its field, and keys that contradict
each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightline.config.typed import found_words, nodes_of, walk
from sightline.errors import ConfigError, listing

if TYPE_CHECKING:
    from sightline.config.schema import TrainConfig


_CLASS_LOSSES = (
    "CrossEntropyLoss", "NLLLoss", "FocalLoss", "ProbabilityNLL", "BCEWithLogitsLoss", "MultiMarginLoss",
    "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "LabelSmoothingCrossEntropy", "SoftTargetCrossEntropy",
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """The values that a key may have: `holds` says whether one is among them, `expected` which they are. `null` and a
    word such as `auto` always are. Of a list every item is tried, or, with `together`, the list as one."""

    holds: Callable[[Any], bool]
    expected: str
    together: bool = False

    def check(self, key: str, value: Any) -> None:
        """Raises ConfigError for a value that is not in the range."""
        if value is None or isinstance(value, str):
            return
        for item in value if isinstance(value, list) and not self.together else [value]:
            if not self.holds(item):
                raise ConfigError(key=key, expected=self.expected, found=item)


def at_least(low: float, expected: str = "") -> Range:
    """Numbers from `low` on, infinity included."""
    return Range(lambda value: value >= low, expected or f"a number of at least {low}")


def above(low: float, expected: str = "") -> Range:
    """Finite numbers above `low`."""
    return Range(lambda value: low < value < math.inf, expected or f"a number above {low}")


def between(low: float, high: float, expected: str = "") -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(lambda value: low <= value <= high, expected or f"a number between {low} and {high}")


def pair(most: float = math.inf) -> Range:
    """[least, most] above 0, in this order."""
    return Range(
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= most and value[1] < math.inf,
        f"two numbers [least, most] above 0{'' if math.isinf(most) else f' and at most {most}'}",
        together=True,
    )


PROBABILITY = between(0, 1, "a probability between 0 and 1")
FINITE = Range(math.isfinite, "a number below infinity")
SHARE_OR_COUNT = Range(
    lambda value: math.isfinite(value) and (value <= 1 or value == int(value)),
    "a part below 1 or a whole number of images",
)
BELOW_2_63 = Range(lambda value: value < 2**63, "a number below 2**63")
SIDES = Range(
    lambda value: (
        all(int(side) >= 1 for side in ([value] if isinstance(value, int) else value))
        and (isinstance(value, int) or len(value) in (1, 2))
    ),
    "one side or [height, width] of at least 1 pixel",
    together=True,
)


def check_ranges(config: TrainConfig) -> None:
    """Raises ConfigError naming the key, what was found and what was expected."""
    for key, item in walk(type(config)):
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
            raise ConfigError(f"{key}: expected a node with '_target_', found {found_words(node)}.")
    nodes = {"module.loss": module.loss, "module.optimizer": module.optimizer}
    nodes |= nodes_of("module.lr_scheduler", module.lr_scheduler)
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
        nodes |= nodes_of("module.network.layers", layers)
    else:
        nodes["module.network"] = module.network
    for key, node in nodes.items():
        if not isinstance(node, Mapping) or not ("_target_" in node or "class" in node):
            raise ConfigError(f"{key}: expected a node with '_target_', found {found_words(node)}.")
