"""What must hold before the first step, so that nothing fails after an hour, or runs to its end as something else."""

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
"""The parts a caller may hand over instead of describing them."""
PARTS = GIVEN[:5]
"""Those of them that make the training what it is: to resume, they must be handed over again."""
FAR = 100.0
"""Labels whose mean or deviation is beyond this are warned of."""
STEPS = (
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)
"""Keys that make another step of the same batches."""
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
"""Keys that are about the update, which a task that was handed over does itself."""


def check_targets(config: TrainConfig) -> None:
    """A name that stands for nothing is told before any image is decoded."""
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
    """Raises ConfigError for a key that says how to make, or how to use, a part that was handed over ready-made: it
    would be ignored."""
    keys: dict[str, Sequence[str]] = {
        "task": UPDATES,
        "loss": ["module.class_weights", "module.loss"],
        "optimizer": [f"module.{key}" for key in ("layer_decay", "head_lr", "param_groups", "decay_1d", "optimizer")],
        "model": ["module.pretrained", "module.weights", "module.weights_by", "module.network"],
    }
    # with numbers as labels, the loss that nobody chose is another
    usual = TrainConfig.from_dict({"data": {"target": config.data.target}}).to_dict()
    now = config.to_dict()
    for part, names in keys.items():
        for name in names if given.get(part) is not None else ():
            value = get_at_path(now, *name.split("."))
            if value != get_at_path(usual, *name.split(".")):
                what = "does the update itself" if part == "task" else "is used as it is"
                raise ConfigError(
                    f"{name}: the {part} was handed over in Python and {what}, so {value} would have no effect. Leave "
                    f"the key out, or leave the {part} to the config."
                )
    if given.get("task") is not None and config.trainer.threads == "auto":
        raise ConfigError(
            "trainer.threads: auto times steps of the config's own task, and the task was handed over in Python; give "
            "a number, or leave it out for torch's own choice."
        )


def check_precision(config: TrainConfig, runtime: Runtime) -> None:
    """Raises ConfigError for a precision the device does not have."""
    if config.trainer.precision == "bf16" and runtime.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("trainer.precision: this CUDA device has no bf16; use fp16 or fp32.")


def check_monitors(config: TrainConfig, evals: Sequence[str], meters: Meters) -> None:
    """Before epoch 0: a monitor that no metric will ever match would silently keep the wrong checkpoint."""
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
            raise ConfigError(f"{key}: there will be no metric '{name}'.{hint} There will be: {join_names(names, 40)}.")


def check_loss(loss: Any, model: nn.Module, spec: ModelSpec, runtime: Runtime) -> None:
    """Tries the loss on an answer of the right shape, before the first step would fail on it."""
    classes = spec.num_classes
    numbers = spec.outputs == "values"
    output = torch.full((classes + 1, classes), 1 / classes, device=runtime.device, requires_grad=True)
    # every class, in a length that broadcasts with nothing
    target = torch.arange(classes + 1, device=runtime.device) % classes
    if numbers:  # between 0 and 1, which is all that some losses take
        target = torch.tensor([[0.3], [0.5], [0.7]], device=runtime.device)
        output = torch.full_like(target, 0.4, requires_grad=True)
    message = "numbers, float32 [batch, 1]" if numbers else "class indices, int64 [batch]"
    inner = loss.loss if isinstance(loss, ClassWeightedLoss) else loss
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with DoubleSoftmax() as look:  # a loss of the user's own may be cross entropy, too
                value = loss(output, target)
            doubled = loss(output.repeat(2, 1), target.repeat(2, 1) if numbers else target.repeat(2))
    except Exception as error:  # whatever the loss's own code raises is about these arguments
        raise ConfigError(
            f"module.loss: {type(inner).__name__} cannot compare the network's output, float32 [batch, {classes}], "
            f"with {message}: {error}"
        ) from error
    if not isinstance(value, torch.Tensor) or value.ndim:
        found = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ConfigError(f"module.loss: expected one number for a batch, got {found}; set reduction: mean.")
    if not torch.allclose(value, doubled, rtol=1e-3):
        raise ConfigError(
            "module.loss: it grows with the size of the batch; set reduction: mean, the mean over samples."
        )
    if numbers:
        _check_least_at_target(loss, target)
        return
    if isinstance(inner, nn.NLLLoss):
        sums = output_for_noise(model, spec.shape).exp().sum(1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise ConfigError(
                "module.loss: NLLLoss takes log-probabilities, and the network does not end in a LogSoftmax; "
                "CrossEntropyLoss is the one for logits."
            )
    if spec.outputs == "probabilities":
        look.warn(
            "the network ends in a softmax and the loss is cross entropy",
            "Take the softmax out of the network, or set module.loss._target_=sightline.models.losses.ProbabilityNLL.",
        )


def _check_least_at_target(loss: Any, target: torch.Tensor) -> None:
    """What the network answers is taken for the number itself; cross entropy, for one, is 0 whatever it answers."""
    with torch.no_grad():
        at, above, below = (float(loss(target + shift, target)) for shift in (0.0, 0.2, -0.2))
    if not (at < above and at < below):
        raise ConfigError(
            f"module.loss: {type(loss).__name__} is not least where the network answers with the label itself, so what "
            f"it trains is no prediction of the number. Take torch.nn.MSELoss, L1Loss or SmoothL1Loss."
        )


def check_labels(data: PackedDataset) -> None:
    """Raises DataError for numbers that leave nothing to learn, and warns of those that are far from where a network
    begins; nothing is scaled without being asked."""
    if data.classes:
        return
    if data.spread["min"] == data.spread["max"]:
        raise DataError(
            f"data.target=number: all {len(data)} training labels are {data.spread['min']:.6g}, which leaves "
            f"nothing to learn. Is data.label_column the right one?"
        )
    deviation, mean = (float(value) for value in torch.std_mean(data.labels.double()))
    if deviation > FAR or abs(mean) > FAR:
        warnings.warn(
            f"data.target=number: the training labels have a mean of {mean:.4g} and a standard deviation of "
            f"{deviation:.4g}. A network begins near 0 and learns numbers of about 1 best; write such labels in larger "
            f"units, such as thousands, or minus their mean.",
            UserWarning,
            stacklevel=2,
        )


def check_conflicts(data: Mapping[str, PackedDataset]) -> None:
    """Warns of images that are there with several labels, in whichever splits: no network can learn both, and a test
    that holds one of them cannot be passed."""
    packed = [part for part in data.values() if part.classes and part.stats is not None]
    stats = [(part.stats.keys, part.rows) for part in packed if part.stats is not None]
    if not packed:
        return
    keys = np.concatenate([keys if rows is None else keys[rows] for keys, rows in stats])
    labels = np.concatenate([part.labels.numpy() for part in packed])
    order = np.lexsort((labels, keys))
    same = (keys[order][1:] == keys[order][:-1]) & (keys[order][1:] != 0)
    places = np.flatnonzero(same & (labels[order][1:] != labels[order][:-1]))
    if not len(places):
        return
    ids, classes = [name for part in packed for name in part.ids], packed[0].classes
    pairs = [(order[place], order[place + 1]) for place in places[:3]]
    shown = "; ".join(" and ".join(f"'{ids[row]}' ({classes[labels[row]]})" for row in pair) for pair in pairs)
    count = len({int(key) for key in keys[order][places]})
    warnings.warn(
        f"{count} image{'s are' if count > 1 else ' is'} in more than one class, with the same pixels: {shown}"
        f"{'; …' if len(places) > len(pairs) else ''}. Training and measuring go on with all of these labels; take the "
        f"wrong ones out of the data.",
        UserWarning,
        stacklevel=2,
    )


def check_given(given: Mapping[str, Any]) -> None:
    """Raises TypeError for a part that cannot be passed in, and for a task without one of its methods."""
    for name in given:
        if name not in GIVEN:
            raise TypeError(f"'{name}' cannot be given.{did_you_mean(name, GIVEN)} What can: {', '.join(GIVEN)}.")
    if given.get("task") is not None:
        check_task(given["task"])
    if "recorder" in given:
        as_recorder(given["recorder"])
