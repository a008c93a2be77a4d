"""Checks before the first training step, so that a mistake in config, data or loss fails early and not silently."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.compose.meters import Meters
from sightline.config.schema import TrainConfig
from sightline.config.typed import nodes_of
from sightline.core import locate
from sightline.core.errors import ConfigError, DataError, did_you_mean, join_names
from sightline.core.mappings import get_at_path
from sightline.data.cache.dataset import PackedDataset
from sightline.engine.runtime import Runtime
from sightline.engine.trainer import check_task
from sightline.metrics.meter import metric_names
from sightline.models.losses import ClassWeightedLoss
from sightline.models.softmax import DoubleSoftmax
from sightline.models.spec import ModelSpec, output_for_noise
from sightline.runs.recorders import as_recorder

GIVEN = ("source", "model", "loss", "optimizer", "task", "callbacks", "recorder")
"""Names of the parts that a caller may pass in instead of describing them in the config."""
PARTS = GIVEN[:5]
"""Those parts that determine the training, so that a resumed run needs them again."""
FAR = 100.0
"""Regression labels whose absolute mean or standard deviation is above this cause a warning."""
STEPS = (
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)
"""Config keys that change what a training step computes from the same batches."""
UPDATES = (
    *STEPS,
    "trainer.channels_last",
    "trainer.compile",
    "module.freeze_epochs",
    "module.freeze",
    "module.freeze_statistics",
    "module.class_weights",
    "module.mixup",
    "module.cutmix",
    "module.mix_probability",
    "module.ema",
    "module.ema_warmup",
)
"""Config keys of the update step. They have no effect on a task that is passed in, which does the update itself."""


def check_targets(config: TrainConfig) -> None:
    """Imports every `_target_` of the config, so that a wrong name fails before any image is decoded.

    Raises ConfigError for an unknown name and MissingExtraError for a library that is not installed."""
    module = config.module
    schedulers = module.lr_scheduler if isinstance(module.lr_scheduler, list) else [module.lr_scheduler]
    layers = module.network.get("layers", [module.network])
    for key, nodes in {
        "module.network": layers,
        "module.loss": [module.loss],
        "module.optimizer": [module.optimizer],
        "module.lr_scheduler": [node for node in schedulers if node],
        **{f"module.metrics.{name}": [node] for name, node in module.metrics.items()},
    }.items():
        for node in nodes:
            if isinstance(node.get("_target_"), str):
                locate.resolve(node["_target_"], key=f"{key}._target_")


def check_owned(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that has no effect because it configures a part that was passed in as `given`."""
    keys: dict[str, Sequence[str]] = {
        "task": UPDATES,
        "loss": ["module.class_weights", "module.loss"],
        "optimizer": [f"module.{key}" for key in ("layer_decay", "head_lr", "param_groups", "decay_1d", "optimizer")],
        "model": ["module.pretrained", "module.weights", "module.weights_by", "module.network"],
    }
    # the default loss depends on data.target
    defaults = TrainConfig.from_dict({"data": {"target": config.data.target}}).to_dict()
    values = config.to_dict()
    for part, names in keys.items():
        for name in names if given.get(part) is not None else ():
            value = get_at_path(values, *name.split("."))
            if value != get_at_path(defaults, *name.split(".")):
                reason = "does the update itself" if part == "task" else "is used unchanged"
                raise ConfigError(
                    f"{name}: the {part} was passed in from Python and {reason}, so this key has no effect. "
                    f"Remove it, or do not pass in the {part}."
                )
    if given.get("task") is not None and config.trainer.threads == "auto":
        raise ConfigError(
            "trainer.threads: auto cannot time a task that was passed in from Python. Set a number, or remove the key "
            "to use torch's default."
        )


def check_precision(config: TrainConfig, runtime: Runtime) -> None:
    """Raises ConfigError if the device does not support the precision."""
    if config.trainer.precision == "bf16" and runtime.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("trainer.precision: this CUDA device does not support bf16. Use fp16 or fp32.")


def check_monitors(config: TrainConfig, evals: Sequence[str], meters: Meters) -> None:
    """Raises ConfigError for a monitor that is not a metric of this run.

    Without this check, an unknown monitor would silently keep the wrong checkpoint. `evals` are the splits that are
    evaluated during training."""
    names = metric_names(evals, meters.measured, meters.at_evaluation)
    wanted = {"module.monitor": config.module.monitor}
    if config.trainer.early_stopping.patience is not None:
        wanted["trainer.early_stopping.monitor"] = config.trainer.early_stopping.monitor or config.module.monitor
    for key, node in nodes_of("module.lr_scheduler", config.module.lr_scheduler):
        arguments = locate.split_node(node, key)[2]
        if arguments.get("monitor") is not None:
            if not isinstance(arguments["monitor"], str):
                raise ConfigError(f"{key}.monitor: expected the name of a metric, found {arguments['monitor']!r}.")
            wanted[f"{key}.monitor"] = arguments["monitor"]
    for key, name in wanted.items():
        if name not in names:
            missing = name.startswith("val_") and "val" not in evals
            hint = " There is no validation split: set data.val." if missing else did_you_mean(name, names)
            raise ConfigError(f"{key}: there is no metric '{name}'.{hint} Expected one of: {join_names(names, 40)}.")


def check_loss(loss: Any, model: nn.Module, spec: ModelSpec, runtime: Runtime) -> None:
    """Calls the loss on a test batch of the right shapes and checks the result.

    Raises ConfigError if the loss fails, does not return a scalar, grows with the batch size, does not match the
    network's last layer, or for regression is not smallest at the label. Warns about a softmax before cross entropy."""
    classes = spec.num_classes
    regression = spec.outputs == "values"
    output = torch.full((classes + 1, classes), 1 / classes, device=runtime.device, requires_grad=True)
    # contains every class; its length differs from the number of classes, so that no wrong shapes broadcast
    target = torch.arange(classes + 1, device=runtime.device) % classes
    if regression:  # values in [0, 1], because some losses accept no others
        target = torch.tensor([[0.3], [0.5], [0.7]], device=runtime.device)
        output = torch.full_like(target, 0.4, requires_grad=True)
    labels = "numbers, float32 [batch, 1]" if regression else "class indices, int64 [batch]"
    inner = loss.loss if isinstance(loss, ClassWeightedLoss) else loss
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with DoubleSoftmax() as softmax_check:  # a custom loss may call cross entropy too
                value = loss(output, target)
            doubled = loss(output.repeat(2, 1), target.repeat(2, 1) if regression else target.repeat(2))
    except Exception as error:  # a custom loss may raise anything
        name = getattr(inner, "__name__", type(inner).__name__)
        raise ConfigError(
            f"module.loss: {name} cannot compare the network's output, float32 [batch, {classes}], with "
            f"{labels}: {error}"
        ) from error
    if not isinstance(value, torch.Tensor) or value.ndim:
        found = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ConfigError(f"module.loss: expected one number for a batch, found {found}. Set reduction: mean.")
    if not torch.allclose(value, doubled, rtol=1e-3):
        raise ConfigError(
            "module.loss: the loss grows with the batch size. Set reduction: mean, the mean over samples."
        )
    if regression:
        _check_least_at_target(loss, target)
        return
    if isinstance(inner, nn.NLLLoss):
        sums = output_for_noise(model, spec.shape).exp().sum(1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise ConfigError(
                "module.loss: NLLLoss takes log-probabilities, but the network does not end in a LogSoftmax. Use "
                "CrossEntropyLoss for logits."
            )
    if spec.outputs == "probabilities":
        softmax_check.warn(
            "The network ends in a softmax and the loss is cross entropy",
            "Remove the softmax from the network, or set module.loss._target_=sightline.models.losses.ProbabilityNLL.",
        )


def _check_least_at_target(loss: Any, target: torch.Tensor) -> None:
    """Raises ConfigError if a regression loss is not smallest where the output equals the label.

    Cross entropy, for example, is 0 for every output."""
    with torch.no_grad():
        at, above, below = (float(loss(target + shift, target)) for shift in (0.0, 0.2, -0.2))
    if not (at < above and at < below):
        raise ConfigError(
            f"module.loss: {type(loss).__name__} is not smallest where the network's output equals the label, so it "
            f"cannot train a regression. Use torch.nn.MSELoss, L1Loss or SmoothL1Loss."
        )


def check_labels(data: PackedDataset) -> None:
    """Checks regression labels: raises DataError if all are equal, and warns if they are badly scaled.

    Labels are never scaled automatically. For classification, this does nothing."""
    if data.classes:
        return
    if data.spread["min"] == data.spread["max"]:
        raise DataError(
            f"data.target=number: all {len(data)} training labels are {data.spread['min']:.6g}, so there is nothing to "
            f"learn. Check data.label_column."
        )
    deviation, mean = (float(value) for value in torch.std_mean(data.labels.double()))
    if deviation > FAR or abs(mean) > FAR:
        warnings.warn(
            f"data.target=number: the training labels have a mean of {mean:.4g} and a standard deviation of "
            f"{deviation:.4g}. A network's first outputs are near 0, and it learns values of about 1 best. Express the "
            f"labels in another unit, such as thousands, or subtract their mean.",
            UserWarning,
            stacklevel=2,
        )


def check_conflicts(data: Mapping[str, PackedDataset]) -> None:
    """Warns about images that occur with different labels, in the same or in different splits.

    Images are equal if their content keys are. No network can predict both labels of such an image."""
    packed = [part for part in data.values() if part.classes and part.stats is not None]
    stats = [(part.stats.keys, part.rows) for part in packed if part.stats is not None]
    if not packed:
        return
    keys = np.concatenate([keys if rows is None else keys[rows] for keys, rows in stats])
    labels = np.concatenate([part.labels.numpy() for part in packed])
    order = np.lexsort((labels, keys))
    same = (keys[order][1:] == keys[order][:-1]) & (keys[order][1:] != 0)
    conflicts = np.flatnonzero(same & (labels[order][1:] != labels[order][:-1]))
    if not len(conflicts):
        return
    ids, classes = [name for part in packed for name in part.ids], packed[0].classes
    pairs = [(order[position], order[position + 1]) for position in conflicts[:3]]
    shown = "; ".join(" and ".join(f"'{ids[row]}' ({classes[labels[row]]})" for row in pair) for pair in pairs)
    count = len({int(key) for key in keys[order][conflicts]})
    warnings.warn(
        f"{count} image{'s are' if count > 1 else ' is'} in more than one class, with the same pixels: {shown}"
        f"{'; …' if len(conflicts) > len(pairs) else ''}. All of these labels are used; remove the wrong ones from the "
        f"data.",
        UserWarning,
        stacklevel=2,
    )


def check_given(given: Mapping[str, Any]) -> None:
    """Raises TypeError for an unknown part, and for a task or recorder that lacks a method."""
    for name in given:
        if name not in GIVEN:
            raise TypeError(
                f"'{name}' cannot be passed in.{did_you_mean(name, GIVEN)} Expected one of: {', '.join(GIVEN)}."
            )
    if given.get("task") is not None:
        check_task(given["task"])
    if "recorder" in given:
        as_recorder(given["recorder"])
