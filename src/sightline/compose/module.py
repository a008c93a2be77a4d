"""Builds the network, loss, task, optimiser and learning-rate schedules that a config's `module` node describes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from sightline.compose.weights import build_from_weights
from sightline.config.schema import ModuleConfig, TrainConfig
from sightline.config.typed import nodes_of
from sightline.core import locate
from sightline.core.errors import ConfigError
from sightline.core.log import logger
from sightline.core.types import Schedule
from sightline.data.images.preprocess import Preprocess
from sightline.engine.ema import ModelEMA
from sightline.engine.freezing import Freeze
from sightline.engine.mixup import MixupCutMix
from sightline.engine.tasks import SupervisedTask
from sightline.metrics.direction import metric_mode
from sightline.models.losses import ClassWeightedLoss
from sightline.models.param_groups import parameter_groups
from sightline.models.spec import ModelSpec, build_model, make_model_spec, without_downloads
from sightline.models.structure import find_head, parameter_depths
from sightline.optim.optimizers import build_optimizer
from sightline.optim.schedules import build_schedule


def build_loss(module: ModuleConfig, device: torch.device, allow: Sequence[str] | None = None) -> Any:
    """Builds the config's loss on `device`, weighted by class if `class_weights` is set.

    `module.class_weights` must be resolved to numbers. `allow` limits the names that the loss may use, see
    `locate.resolve`. Raises ConfigError for a loss that class weights cannot be applied to."""
    node, class_weights = module.loss, module.class_weights
    loss = locate.instantiate(node, key="module.loss", allow=allow)
    if class_weights is not None:
        weighted = getattr(loss, "weight", None) is not None
        if weighted or not isinstance(getattr(loss, "reduction", None), str):
            advice = "such as torch.nn.CrossEntropyLoss or sightline.models.losses.FocalLoss"
            problem = (
                "already has a weight. Remove one of the two."
                if weighted
                else (f"cannot be weighted, because it has no reduction. Use a loss {advice}.")
            )
            raise ConfigError(f"module.class_weights: the loss {type(loss).__name__} {problem}")
        loss = ClassWeightedLoss(loss, class_weights)  # type: ignore[arg-type]  # never 'auto' here
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def build_task(config: TrainConfig, loss: Any, spec: ModelSpec, freeze: Freeze | None = None) -> SupervisedTask:
    """Builds the task that trains with `loss` and the config's precision, EMA, mixup, CutMix and gradient settings.

    `spec` is the network's, `freeze` the layers that are not trained."""
    module, trainer = config.module, config.trainer
    mixes = module.mixup or module.cutmix
    return SupervisedTask(
        loss,
        spec.outputs,
        precision=trainer.precision,
        channels_last=trainer.channels_last is True,
        accumulate=trainer.accumulate_grad_batches,
        part_size=config.data.batch_size,
        clip=trainer.gradient_clip_val,
        clip_algorithm=trainer.gradient_clip_algorithm,
        average=None if module.ema is None else ModelEMA(module.ema, module.ema_warmup),
        mix=MixupCutMix(module.mixup, module.cutmix, module.mix_probability, config.seed) if mixes else None,
        freeze=freeze,
    )


def _by_name(node: Mapping[str, Any], key: str) -> tuple[Any, dict[str, Any]]:
    """Returns (callable, keyword arguments) of a node whose first positional argument is set by Sightline."""
    target, args, arguments = locate.prepare_call(node, key=key)
    if args:
        raise ConfigError(
            f"{key}._args_: the first argument is set by Sightline. Set the others by name; found {args}."
        )
    return target, arguments


def build_network(
    config: TrainConfig, given: nn.Module | None, preprocess: Preprocess, num_classes: int, fresh: bool = True
) -> tuple[nn.Module, ModelSpec]:
    """Builds the config's network on the CPU with its initial weights, and its spec.

    If `given` is not None, it is used instead. `num_classes` is the number of outputs. Without `fresh`, pretrained
    weights are not loaded, because a checkpoint will replace them. Raises ConfigError or ModelError for a network that
    cannot be built."""
    module = config.module
    outputs = "values" if config.data.target == "number" else module.outputs
    if given is not None:
        network = {"object": f"{type(given).__module__}.{type(given).__qualname__}"}
        return given, make_model_spec(given, network, preprocess.shape, num_classes, outputs, "model")
    torch.manual_seed(config.seed)
    if not fresh:
        plain = without_downloads(module.network)
        return build_model(plain, preprocess.shape, num_classes, outputs=outputs)
    model, spec, loaded = build_from_weights(module, preprocess.shape, num_classes, outputs)
    if loaded is not None:
        logger.info(loaded)
    return model, spec


def make_optimizer(config: TrainConfig, given: Any, model: nn.Module, shape: tuple[int, int, int]) -> Any:
    """Builds the config's optimiser over the model's parameters, or checks and returns `given` if it is not None.

    `shape` is the (C, H, W) of an image. Raises ConfigError for a config key that has no effect on `given`, and
    TypeError if its parameters are not the model's."""
    module = config.module
    group_keys = [
        name
        for name, used in (
            ("layer_decay", module.layer_decay != 1),
            ("head_lr", module.head_lr is not None),
            ("param_groups", bool(module.param_groups)),
            ("decay_1d", not module.decay_1d),
        )
        if used
    ]
    if given is None:
        target, arguments = _by_name(module.optimizer, "module.optimizer")
        groups = None
        if group_keys:
            groups = parameter_groups(
                model,
                target,
                arguments,
                depths=_depths(module, model, shape),
                layer_decay=module.layer_decay,
                head_lr=module.head_lr,
                overrides=module.param_groups,
                decay_1d=module.decay_1d,
            )
        return build_optimizer(target, arguments, model, "module.optimizer", groups)
    if group_keys:
        raise ConfigError(
            f"module.{group_keys[0]}: the optimiser was passed in from Python, with its parameter groups. "
            f"Remove this key."
        )
    if not {id(p) for group in given.param_groups for p in group["params"]} <= set(map(id, model.parameters())):
        raise TypeError("optimizer: it has parameters that are not the model's. Pass in its model too.")
    return given


def _depths(module: ModuleConfig, model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int] | None:
    """Returns the depth of each parameter, or None if no learning rate depends on it.

    Raises ConfigError if `module.head_lr` is set and the head cannot be found."""
    if module.layer_decay == 1 and module.head_lr is None:
        return None
    if module.head_lr is not None and not find_head(model, shape):
        raise ConfigError(
            "module.head_lr: it is not known which layer of this network is its head. Remove the key, and set the "
            "layer's learning rate in module.param_groups."
        )
    depths = parameter_depths(model, shape)
    top = max(depths.values(), default=0)
    return depths if module.layer_decay != 1 else {name: int(depth == top) for name, depth in depths.items()}


def make_freeze(config: TrainConfig, model: nn.Module, shape: tuple[int, int, int]) -> Freeze | None:
    """Builds the config's freezing of layers, or returns None if nothing is frozen.

    `shape` is the (C, H, W) of an image. Raises ConfigError for a pattern that matches no layer, and if no parameter
    would be trained."""
    module = config.module
    if not module.freeze_epochs and not module.freeze and not module.freeze_statistics:
        return None
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper prefixes the names
    heads = find_head(model, shape) if module.freeze_epochs or module.freeze_statistics else ()
    freeze = Freeze(heads, module.freeze_epochs, module.freeze, statistics=module.freeze_statistics)
    freeze.check(model)
    return freeze


def make_schedules(
    config: TrainConfig, optimizer: Any, steps_per_epoch: int, known: Mapping[str, str] = MappingProxyType({})
) -> list[Schedule]:
    """Builds every learning-rate schedule of the config, for a run of `trainer.max_epochs` epochs.

    `known` is as in `better_direction`. Raises ConfigError for arguments that a schedule does not accept."""
    schedules = []
    for key, node in nodes_of("module.lr_scheduler", config.module.lr_scheduler):
        target, arguments = _by_name(node, key)
        own_monitor = arguments.pop("monitor", None)
        monitor = own_monitor or config.module.monitor
        options: dict[str, Any] = {"key": f"{key}.mode"} if monitor != config.module.monitor else {}
        # if the direction is known, build_schedule reports a `mode` that contradicts it
        if options and metric_mode(monitor, known) is None:
            options["mode"] = arguments.get("mode")
        schedules.append(
            build_schedule(
                target,
                arguments,
                optimizer,
                steps_per_epoch=steps_per_epoch,
                epochs=config.trainer.max_epochs,
                monitor=monitor,
                better=better_direction(config, monitor, known, **options),
                key=key,
            )
        )
        if own_monitor is not None and schedules[-1].monitor is None:
            raise ConfigError(f"{key}.monitor: only ReduceLROnPlateau watches a metric. Remove this key.")
    return schedules


def better_direction(
    config: TrainConfig,
    monitor: str,
    known: Mapping[str, str] = MappingProxyType({}),
    *,
    key: str = "module.monitor_mode",
    mode: Any = "auto",
) -> str:
    """Returns "min" or "max", whichever values of the metric `monitor` are better.

    The first of these that is known decides: `mode`, `module.monitor_mode` if `monitor` is `module.monitor`, `known`
    (see `Meters.better`), and the metric's name. Raises ConfigError, which asks to set `key`, if none is."""
    if mode in ("min", "max"):
        return str(mode)
    configured = config.module.monitor_mode
    use_configured = configured != "auto" and monitor == config.module.monitor
    direction = configured if use_configured else metric_mode(monitor, known)
    if direction is None:
        raise ConfigError(
            f"{key}: it is not known whether lower or higher values of '{monitor}' are better. Set {key}=min or "
            f"{key}=max."
        )
    return direction
