"""Composes a config from the command line's `key=value` overrides and the YAML presets. Only this module uses Hydra.

Two rules of Hydra are relaxed, because the schema checks every key afterwards. A key that no preset lists needs no
`+`, and the error for an unknown preset or key suggests the nearest name."""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.config.schema import TrainConfig, walk
from sightline.config.typed import NAMING, merge
from sightline.core.errors import ConfigError, did_you_mean, first_line, join_names
from sightline.core.yamlfile import yaml_reason

PRESETS_DIR = Path(__file__).parent.parent / "config" / "presets"
_PRETRAINED_LIBRARIES = ("timm", "torchvision")
_INITIAL_WEIGHTS = ("pretrained", "weights")
"""Keys that set a network's initial weights, as short keys at the top level and in `module`."""
_STRING_KEYS = frozenset(key for key, item in walk() if str(item.type) in ("str", "str | None"))


def compose_dict(words: Sequence[str], config_dir: str | None = None, config_name: str = "train") -> dict[str, Any]:
    """Composes the config of a command line and returns it as a nested dict, before the schema checks it.

    `words` are overrides such as `experiment=mnist` or `trainer.max_epochs=5`, `config_dir` is a directory with further
    presets, `config_name` the primary config. Raises ConfigError for an invalid override or an unknown preset."""
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir: the directory '{config_dir}' does not exist.")
        search = [f"hydra.searchpath=[{_quoted(Path(config_dir).resolve().as_uri())}]"]
    try:
        with hydra.initialize_config_dir(str(PRESETS_DIR), version_base="1.3"):
            overrides = [*search, *_to_hydra_overrides(words, _preset_groups(config_dir))]
            config = hydra.compose(config_name, overrides=overrides)
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            assert isinstance(values, dict)
            plain = {str(key): value for key, value in values.items()}
            explicit = _override_values(words, _preset_groups(config_dir))
            # the presets of this package never replace the class of a node, so only other sources can
            if config_dir is not None or _has_class_node(explicit):
                layers = merge(_merge_layers(config_name, overrides, config_dir), explicit)
                plain = _drop_stale_arguments(plain, layers)
            plain = _resolve_initial_weights(_resolve_network(plain, explicit), explicit)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_reason(error, config_name)) from error
    fields = {key.partition(".")[0] for key, _ in walk()}
    for group in plain:
        if group in _preset_groups(config_dir) and group not in fields:
            raise ConfigError(
                f"the preset of {group}= puts its keys under '{group}', which is not a config key. Its first line must "
                f"be: # @package _global_"
            )
    return plain


def compose_config(words: Sequence[str], config_dir: str | None = None, config_name: str = "train") -> TrainConfig:
    """Composes the config of a command line and checks it against the schema, without importing torch.

    The arguments are those of `compose_dict`. Raises ConfigError also for an unknown key or an invalid value."""
    return TrainConfig.from_dict(compose_dict(words, config_dir, config_name), also=tuple(_preset_groups(config_dir)))


def parse_overrides(words: Sequence[str], allowed: Sequence[str], command: str) -> dict[str, Any]:
    """Parses `key=value` overrides of a run that already has a config, and returns them as a nested dict.

    `words` are the overrides, in the grammar of `sightline train`. `allowed` are the keys that may be changed; a name
    that ends in a dot allows every key below it. `command` is the command's name, for messages. Raises ConfigError for
    an invalid override or a key that is not allowed."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = OmegaConf.create({})
    for override in map(_parse_override, words):
        key = override.key_or_group
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in allowed):
            names = join_names(f"{name}…" if name.endswith(".") else name for name in allowed)
            raise ConfigError(f"{key}: {command} cannot change this key. Keys it can change: {names}.")
        OmegaConf.update(values, key, override.value())
    try:
        plain = OmegaConf.to_container(values, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_reason(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _reason(error: Exception, config_name: str = "train") -> str:
    """Returns the message for an error of Hydra, OmegaConf or YAML, with the key or the file where it is known."""
    if getattr(error, "missing_cfg_file", None) == config_name:
        return f"--config-name: there is no config '{config_name}'. Expected 'train', or a file in --config-dir."
    if getattr(error, "full_key", None):
        return f"{error.full_key}: {first_line(error)}."  # type: ignore[attr-defined]
    mark = getattr(error, "problem_mark", None)
    return first_line(error) if mark is None else f"'{mark.name}' cannot be read as YAML: {yaml_reason(error)}."


def _override_values(overrides: Sequence[str], groups: Container[str]) -> dict[str, Any]:
    """Returns the keys that the overrides set themselves, without the keys of the presets they select."""
    from omegaconf import OmegaConf

    values = OmegaConf.create({})
    for override in map(_parse_override, overrides):
        if override.key_or_group not in groups and not override.is_delete():
            OmegaConf.update(values, override.key_or_group, override.value(), force_add=True)
    plain = OmegaConf.to_container(values)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _has_class_node(values: object) -> bool:
    return isinstance(values, Mapping) and (bool(NAMING & set(values)) or any(map(_has_class_node, values.values())))


def _merge_layers(config_name: str, overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """Merges the schema's defaults and every selected config file in order, node by node, with `merge`.

    Hydra's merging would keep the arguments of a class that a later file replaces."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    loader = GlobalHydra.instance().config_loader()
    merged = TrainConfig().to_dict()
    selected = loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN)
    for item in selected.defaults:
        files = [Path(root) / f"{item.config_path}.yaml" for root in (PRESETS_DIR, config_dir) if root is not None]
        file = next((file for file in files if file.is_file()), None)
        if file is None or (item.package or "").partition(".")[0] == "hydra":
            continue
        layer: Any = OmegaConf.to_container(OmegaConf.load(file))
        layer = {key: value for key, value in layer.items() if key != "defaults"}
        for part in reversed((item.package or "").split(".")):
            layer = {part: layer} if part and part != "_global_" else layer
        merged = merge(merged, layer)
    return merged


def _drop_stale_arguments(plain: Mapping[str, Any], layered: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `plain` without the node arguments that `layered` does not have."""
    is_node = bool(NAMING & set(layered))

    def cleaned(value: Any, other: Any) -> Any:
        both = isinstance(value, Mapping) and isinstance(other, Mapping)
        return _drop_stale_arguments(value, other) if both else value

    return {key: cleaned(value, layered.get(key)) for key, value in plain.items() if key in layered or not is_node}


def _resolve_network(plain: dict[str, Any], explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a network in the overrides (`explicit`) replace the preset's network together with its arguments.

    A network is named by the short key `model` or by the node `module.network`."""
    named = explicit.get("model") is not None
    arguments = set(_network_node(explicit))
    if plain.get("model") is not None and not named and NAMING & arguments:
        plain["model"], named = None, True
    if named and _network_node(plain):
        node = {key: value for key, value in _network_node(plain).items() if key in arguments}
        plain["module"] = {**plain["module"], "network": node}
    return plain


def _resolve_initial_weights(plain: dict[str, Any], explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Decides between the initial weights of a preset and those of the overrides (`explicit`).

    The overrides win, with the short key (`weights`) as well as the long one (`module.weights`): a weights file
    replaces a preset's `pretrained`, and the reverse. If only a preset sets `pretrained` and the network is not from
    timm or torchvision, `pretrained` is dropped together with the preset's freezing keys."""
    if not isinstance(plain.get("module", {}), Mapping):
        return plain  # the schema reports the error
    module_keys = explicit.get("module") if isinstance(explicit.get("module"), Mapping) else {}
    assert isinstance(module_keys, Mapping)
    requested = {
        name: module_keys.get(name, explicit.get(name))
        for name in _INITIAL_WEIGHTS
        if name in explicit or name in module_keys
    }
    enabled = [name for name in _INITIAL_WEIGHTS if requested.get(name)]
    dropped = set(_INITIAL_WEIGHTS) - set(enabled) if len(enabled) == 1 else set[str]()
    if _wants_pretrained(plain) and not requested.get("pretrained") and not _may_be_pretrained(plain):
        dropped.add("pretrained")
        if not requested.get("weights"):
            dropped |= {name for name in ("freeze_epochs", "freeze_statistics") if name not in module_keys}
    if "weights" in dropped:
        dropped.add("weights_by")
    module = {key: value for key, value in plain.get("module", {}).items() if key not in dropped}
    # a short key of a preset must not override the long key of the command line
    short = {name: None for name in _INITIAL_WEIGHTS if name in dropped or name in module_keys}
    return {**plain, **short, **({"module": module} if module else {})}


def _wants_pretrained(plain: Mapping[str, Any]) -> bool:
    return bool(plain.get("pretrained") or plain.get("module", {}).get("pretrained"))


def _may_be_pretrained(plain: Mapping[str, Any]) -> bool:
    """Returns whether the network is from timm or torchvision, or no network is named."""
    network = _network_node(plain)
    target = plain.get("model") or network.get("_target_") or network.get("class")
    root = re.split(r"[./]", target)[0] if isinstance(target, str) else ""
    return "layers" not in network and (not root or root in _PRETRAINED_LIBRARIES)


def _network_node(values: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Returns the node `module.network`, or an empty mapping if there is none."""
    module = values.get("module")
    network = module.get("network") if isinstance(module, Mapping) else None
    return network if isinstance(network, Mapping) else {}


def add_cwd_to_path() -> None:
    """Appends the current directory to `sys.path`, so that `_target_` can name a module in it.

    Installed packages take precedence."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _preset_groups(config_dir: str | None) -> dict[str, list[str]]:
    """Maps each preset group to the names of its presets: those of this package, then those in `config_dir`."""
    groups: dict[str, list[str]] = {}
    for root in (PRESETS_DIR, *([Path(config_dir)] if config_dir else [])):
        for file in sorted(root.glob("*/*.yaml")):
            groups.setdefault(file.parent.name, []).append(file.stem)
    return groups


def _to_hydra_overrides(words: Sequence[str], groups: dict[str, list[str]]) -> list[str]:
    """Converts the command line's overrides to Hydra's, in which a key that no preset lists needs a `++`."""
    from hydra.core.override_parser.types import OverrideType

    overrides = []
    for word, override in zip(words, map(_parse_override, words), strict=True):
        key, value = override.key_or_group, override.value()
        if key in groups and isinstance(value, str):
            if value not in groups[key]:
                options = groups[key]
                message = f"{key}={value}: this preset does not exist.{did_you_mean(value, options)}"
                raise ConfigError(f"{message} Expected one of: {join_names(options)}.")
            overrides.append(word)
        elif key.partition(".")[0] == "hydra":
            raise ConfigError(
                f"'{word}': Hydra's settings are not supported. Set a run's directory with run.dir and run.name."
            )
        elif override.type == OverrideType.CHANGE:
            overrides.append(f"++{override.input_line}")
        else:
            overrides.append(override.input_line)
    return overrides


def _parse_override(word: str) -> Any:
    """Parses one override with Hydra's parser. Raises ConfigError if it is not a single `key=value`.

    The value of a key that the schema types as a string is read literally, so a path may contain commas, brackets and
    spaces."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    key, equals, text = word.partition("=")
    plain = (
        equals and key.lstrip("+") in _STRING_KEYS and text not in ("", "null") and not text.startswith(("'", '"', "$"))
    )
    try:
        (override,) = OverridesParser.create().parse_overrides([f"{key}={_quoted(text)}" if plain else word])
    except OverrideParseException as error:
        problem = "Expected key=value."
        if equals:
            reason = first_line(error)
            problem = f"Its value cannot be parsed ({reason}). Check its brackets, and quote it in a shell: 'key=[…]'."
        raise ConfigError(f"'{word}' is not a config override. {problem}") from error
    if override.is_sweep_override():
        raise ConfigError(f"'{word}' lists several values; a run takes one. For a list, write {key}=[…].")
    return override


def _quoted(text: str) -> str:
    """Quotes a string for Hydra, which reads a backslash before a quote or at the end as an escape."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"
