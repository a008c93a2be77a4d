"""The module node of a config -> network, loss, optimiser and schedules; the part of the composition root that is about
what is trained and how."""

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
    """The loss of the config on the device; its `class_weights` are numbers by now. `allow` limits what it may name,
    see `locate`."""
    node, class_weights = module.loss, module.class_weights
    loss = locate.instantiate(node, key="module.loss", allow=allow)
    if class_weights is not None:
        weighted = getattr(loss, "weight", None) is not None
        if weighted or not isinstance(getattr(loss, "reduction", None), str):
            reason = "has a weight of its own" if weighted else "takes no class weights: it has no reduction"
            raise ConfigError(
                f"module.class_weights: the loss {type(loss).__name__} {reason}. Leave one of the two out, or take a "
                f"loss such as torch.nn.CrossEntropyLoss or sightline.models.losses.FocalLoss."
            )
        loss = ClassWeightedLoss(loss, class_weights)  # type: ignore[arg-type]  # never 'auto' here
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def build_task(config: TrainConfig, loss: Any, spec: ModelSpec, freeze: Freeze | None = None) -> SupervisedTask:
    """What a batch means under this config."""
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
    """(callable, arguments) of a node whose first argument is ours to give."""
    target, args, arguments = locate.prepare_call(node, key=key)
    if args:
        raise ConfigError(f"{key}._args_: its first argument is given to it, so give the others by name; found {args}.")
    return target, arguments


def build_network(
    config: TrainConfig, given: nn.Module | None, preprocess: Preprocess, num_classes: int, fresh: bool = True
) -> tuple[nn.Module, ModelSpec]:
    """The network on the CPU, with its first weights, and its spec; one that was handed over is described as it is.
    Without `fresh`, weights that it starts from are not looked for: a checkpoint will fill it."""
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
    if loaded is not None and config.trainer.progress:
        print(loaded)
    return model, spec


def make_optimizer(config: TrainConfig, given: Any, model: nn.Module, shape: tuple[int, int, int]) -> Any:
    """The optimiser over the model's parameters, or the one handed over, if its parameters are the model's. `shape`
    (C, H, W) is that of an image."""
    module = config.module
    in_use = [
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
        if in_use:
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
    if in_use:
        raise ConfigError(
            f"module.{in_use[0]}: the optimiser was handed over in Python with groups of its own; leave this out."
        )
    if not {id(p) for group in given.param_groups for p in group["params"]} <= set(map(id, model.parameters())):
        raise TypeError("the given optimizer has parameters that are not the model's; give its model too.")
    return given


def _depths(module: ModuleConfig, model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int] | None:
    """How deep each parameter lies, as far as learning rates depend on it. Raises ConfigError where a head is to have
    its own and cannot be found."""
    if module.layer_decay == 1 and module.head_lr is None:
        return None
    if module.head_lr is not None and not find_head(model, shape):
        raise ConfigError(
            "module.head_lr: this network does not say which layer is its head. Leave it out, and give the layer's own "
            "learning rate in module.param_groups."
        )
    found = parameter_depths(model, shape)
    top = max(found.values(), default=0)
    return found if module.layer_decay != 1 else {name: int(depth == top) for name, depth in found.items()}


def make_freeze(config: TrainConfig, model: nn.Module, shape: tuple[int, int, int]) -> Freeze | None:
    """What is not trained, and for how long; None where everything is, always. `shape` (C, H, W) is that of an image.
    Raises ConfigError for a name that stands for no layer, and where nothing would be left to train."""
    module = config.module
    if not module.freeze_epochs and not module.freeze and not module.freeze_statistics:
        return None
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps has the names that are asked for
    heads = find_head(model, shape) if module.freeze_epochs or module.freeze_statistics else ()
    freeze = Freeze(heads, module.freeze_epochs, module.freeze, statistics=module.freeze_statistics)
    freeze.check(model)
    return freeze


def make_schedules(
    config: TrainConfig, optimizer: Any, steps_per_epoch: int, known: Mapping[str, str] = MappingProxyType({})
) -> list[Schedule]:
    """Every schedule of the config, over a run of `trainer.max_epochs` epochs. `known` is as in `better_direction`."""
    schedules = []
    for key, node in nodes_of("module.lr_scheduler", config.module.lr_scheduler):
        target, arguments = _by_name(node, key)
        given = arguments.pop("monitor", None)
        monitor = given or config.module.monitor
        named: dict[str, Any] = {"key": f"{key}.mode"} if monitor != config.module.monitor else {}
        if named and metric_mode(monitor, known) is None:  # else a mode that contradicts the name is an error
            named["mode"] = arguments.get("mode")
        schedules.append(
            build_schedule(
                target,
                arguments,
                optimizer,
                steps_per_epoch=steps_per_epoch,
                epochs=config.trainer.max_epochs,
                monitor=monitor,
                better=better_direction(config, monitor, known, **named),
                key=key,
            )
        )
        if given is not None and schedules[-1].monitor is None:
            raise ConfigError(f"{key}.monitor: only ReduceLROnPlateau watches a metric; this schedule would ignore it.")
    return schedules


def better_direction(
    config: TrainConfig,
    monitor: str,
    known: Mapping[str, str] = MappingProxyType({}),
    *,
    key: str = "module.monitor_mode",
    mode: Any = "auto",
) -> str:
    """ "min" or "max": which values of the metric are better. `mode` decides where it is one of these, then
    `module.monitor_mode` where it is about this metric, `known` (see `Meters.better`), and the metric's name.

    Raises ConfigError, asking for `key`, where none of them says so."""
    if mode in ("min", "max"):
        return str(mode)
    own = config.module.monitor_mode
    found = own if own != "auto" and monitor == config.module.monitor else metric_mode(monitor, known)
    if found is None:
        raise ConfigError(
            f"{key}: the name '{monitor}' does not tell whether lower or higher values are better. Set {key}=min or "
            f"{key}=max."
        )
    return found
