"""Words of the command line -> a plain dict, by Hydra. Hydra begins and ends in this file.

Two habits of Hydra are softened, because the schema checks every key afterwards: a key may be given without `+`
although the preset does not list it, and an unknown group or option is answered with the nearest one."""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.config.schema import TrainConfig, walk
from sightline.config.typed import NAMING, merge
from sightline.core.errors import ConfigError, did_you_mean, first_line, join_names

PRESETS_DIR = Path(__file__).parent.parent / "config" / "presets"
_PRETRAINED_LIBRARIES = ("timm", "torchvision")
_INITIAL_WEIGHTS = ("pretrained", "weights")
"""Keys that say which weights a network starts from, at the top level and in `module`."""
_STRING_KEYS = frozenset(key for key, item in walk() if str(item.type) in ("str", "str | None"))


def compose_dict(words: Sequence[str], config_dir: str | None = None, config_name: str = "train") -> dict[str, Any]:
    """The composed config as a plain dict. Raises ConfigError for a word, group or option that is wrong."""
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir: there is no directory '{config_dir}'.")
        search = [f"hydra.searchpath=[{_quoted(Path(config_dir).resolve().as_uri())}]"]
    try:
        with hydra.initialize_config_dir(str(PRESETS_DIR), version_base="1.3"):
            overrides = [*search, *_to_hydra_overrides(words, _preset_groups(config_dir))]
            config = hydra.compose(config_name, overrides=overrides)
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            assert isinstance(values, dict)
            plain = {str(key): value for key, value in values.items()}
            own = _override_values(words, _preset_groups(config_dir))
            if config_dir is not None or _has_class_node(own):  # our own presets never name two for one node
                plain = _drop_stale_arguments(plain, merge(_merge_layers(config_name, overrides, config_dir), own))
            plain = _resolve_initial_weights(_resolve_network(plain, own), own)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(first_line(error)) from error
    fields = {key.partition(".")[0] for key, _ in walk()}
    for group in plain:
        if group in _preset_groups(config_dir) and group not in fields:
            raise ConfigError(
                f"the preset of {group}= puts its keys under '{group}'; its first line must be: # @package _global_"
            )
    return plain


def compose_config(words: Sequence[str], config_dir: str | None = None, config_name: str = "train") -> TrainConfig:
    """The composed and checked config; torch is not imported."""
    return TrainConfig.from_dict(compose_dict(words, config_dir, config_name), also=tuple(_preset_groups(config_dir)))


def parse_overrides(words: Sequence[str], allowed: Sequence[str], command: str) -> dict[str, Any]:
    """`key=value` words, in the grammar of `train`, as a nested dict, for a run that has its config already. `allowed`
    are the keys that may be changed; one that ends in a dot allows all below it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    made = OmegaConf.create({})
    for word in words:
        override = _parsed(word)
        key = override.key_or_group
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in allowed):
            can = join_names(f"{name}…" if name.endswith(".") else name for name in allowed)
            raise ConfigError(f"{command} takes changes of {can} alone, not '{key}': the rest made the run what it is.")
        OmegaConf.update(made, key, override.value())
    try:
        plain = OmegaConf.to_container(made, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _override_values(words: Sequence[str], groups: Container[str]) -> dict[str, Any]:
    """The keys that the words set, without those of the presets they choose."""
    from omegaconf import OmegaConf

    made = OmegaConf.create({})
    for word in words:
        override = _parsed(word)
        if override.key_or_group not in groups and not override.is_delete():
            OmegaConf.update(made, override.key_or_group, override.value(), force_add=True)
    own = OmegaConf.to_container(made)
    assert isinstance(own, dict)
    return {str(key): value for key, value in own.items()}


def _has_class_node(values: object) -> bool:
    return isinstance(values, Mapping) and (bool(NAMING & set(values)) or any(map(_has_class_node, values.values())))


def _merge_layers(config_name: str, overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """The schema's defaults and every config file that the words choose, laid over one another node by node: see
    `merge`. Hydra's own merging keeps the arguments of a class that a later file replaces."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    loader = GlobalHydra.instance().config_loader()
    found = TrainConfig().to_dict()
    chosen = loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN)
    for item in chosen.defaults:
        files = [Path(root) / f"{item.config_path}.yaml" for root in (PRESETS_DIR, config_dir) if root is not None]
        file = next((file for file in files if file.is_file()), None)
        if file is None or (item.package or "").partition(".")[0] == "hydra":
            continue
        layer: Any = OmegaConf.to_container(OmegaConf.load(file))
        layer = {key: value for key, value in layer.items() if key != "defaults"}
        for part in reversed((item.package or "").split(".")):
            layer = {part: layer} if part and part != "_global_" else layer
        found = merge(found, layer)
    return found


def _drop_stale_arguments(plain: Mapping[str, Any], layered: Mapping[str, Any]) -> dict[str, Any]:
    """`plain` with only those arguments of its nodes that `layered` has."""
    is_node = bool(NAMING & set(layered))

    def cleaned(value: Any, other: Any) -> Any:
        both = isinstance(value, Mapping) and isinstance(other, Mapping)
        return _drop_stale_arguments(value, other) if both else value

    return {key: cleaned(value, layered.get(key)) for key, value in plain.items() if key in layered or not is_node}


def _resolve_network(plain: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Of a network in a preset and another one in the words (`own`), by `model` or by its node, the words' stays: the
    preset's goes with its arguments, which are of no use to another network."""
    named = own.get("model") is not None
    arguments = set(_network_node(own))
    if plain.get("model") is not None and not named and NAMING & arguments:
        plain["model"], named = None, True
    if named and _network_node(plain):
        kept = {key: value for key, value in _network_node(plain).items() if key in arguments}
        plain["module"] = {**plain["module"], "network": kept}
    return plain


def _resolve_initial_weights(plain: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Resolves what the network starts from. Of published weights in a preset and a file in the words (`own`), or the
    other way round, the words' stays, whether they use the short key (`weights`) or the long one (`module.weights`).
    Published weights that only a preset asks for are dropped for a network that is not from timm or torchvision, and
    so are the preset's keys that freeze parts of it."""
    if not isinstance(plain.get("module", {}), Mapping):
        return plain  # the schema reports what is wrong with it
    own_module = own.get("module") if isinstance(own.get("module"), Mapping) else {}
    assert isinstance(own_module, Mapping)
    said = {name: own_module.get(name, own.get(name)) for name in _INITIAL_WEIGHTS if name in own or name in own_module}
    asked = [name for name in _INITIAL_WEIGHTS if said.get(name)]
    dropped = set(_INITIAL_WEIGHTS) - set(asked) if len(asked) == 1 else set[str]()
    if _wants_pretrained(plain) and not said.get("pretrained") and not _may_be_pretrained(plain):
        dropped.add("pretrained")
        if not said.get("weights"):
            dropped |= {name for name in ("freeze_epochs", "freeze_statistics") if name not in own_module}
    if "weights" in dropped:
        dropped.add("weights_by")
    module = {key: value for key, value in plain.get("module", {}).items() if key not in dropped}
    # a short key of a preset must not overrule the long one in the words
    short = {name: None for name in _INITIAL_WEIGHTS if name in dropped or name in own_module}
    return {**plain, **short, **({"module": module} if module else {})}


def _wants_pretrained(plain: Mapping[str, Any]) -> bool:
    return bool(plain.get("pretrained") or plain.get("module", {}).get("pretrained"))


def _may_be_pretrained(plain: Mapping[str, Any]) -> bool:
    """Whether the network is from a library that publishes weights, or none is named."""
    network = _network_node(plain)
    target = plain.get("model") or network.get("_target_") or network.get("class")
    root = re.split(r"[./]", target)[0] if isinstance(target, str) else ""
    return "layers" not in network and (not root or root in _PRETRAINED_LIBRARIES)


def _network_node(values: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The node of the network; empty where there is none."""
    module = values.get("module")
    network = module.get("network") if isinstance(module, Mapping) else None
    return network if isinstance(network, Mapping) else {}


def add_cwd_to_path() -> None:
    """Lets a `_target_` name a module in the current directory, after everything that is installed."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _preset_groups(config_dir: str | None) -> dict[str, list[str]]:
    """The preset groups and their options, ours and the user's."""
    found: dict[str, list[str]] = {}
    for root in (PRESETS_DIR, *([Path(config_dir)] if config_dir else [])):
        for file in sorted(root.glob("*/*.yaml")):
            found.setdefault(file.parent.name, []).append(file.stem)
    return found


def _to_hydra_overrides(words: Sequence[str], groups: dict[str, list[str]]) -> list[str]:
    from hydra.core.override_parser.types import OverrideType

    made = []
    for word in words:
        override = _parsed(word)
        key, value = override.key_or_group, override.value()
        if key in groups and isinstance(value, str):
            if value not in groups[key]:
                options = groups[key]
                message = f"{key}={value}: there is no such preset.{did_you_mean(value, options)}"
                raise ConfigError(f"{message} There are: {join_names(options)}.")
            made.append(word)
        elif key.partition(".")[0] == "hydra":
            raise ConfigError(f"'{word}': of Hydra only the grammar is used; a run's place is run.dir and run.name.")
        elif override.type == OverrideType.CHANGE:
            made.append(f"++{override.input_line}")
        else:
            made.append(override.input_line)
    return made


def _parsed(word: str) -> Any:
    """Hydra's reading of a word. A key that is a text in the schema takes whatever stands behind the `=` as it is, so
    that a path may hold commas, brackets and blanks."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    key, equals, text = word.partition("=")
    plain = (
        equals and key.lstrip("+") in _STRING_KEYS and text not in ("", "null") and not text.startswith(("'", '"', "$"))
    )
    try:
        (override,) = OverridesParser.create().parse_overrides([f"{key}={_quoted(text)}" if plain else word])
    except OverrideParseException as error:
        raise ConfigError(f"'{word}' is no change of the config; expected key=value. {first_line(error)}") from error
    if override.is_sweep_override():
        raise ConfigError(f"'{word}' names several values; one run has one. For a list, write {key}=[…].")
    return override


def _quoted(text: str) -> str:
    """As a text in quotes; Hydra takes a backslash before a quote, or before the end, for an escape."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
