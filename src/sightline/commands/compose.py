"""Words of the command line -> a plain dict, by Hydra. Hydra begins and ends in this file.

Two habits of Hydra are softened, because the schema checks every key afterwards: a key may be given without `+`
although the preset does not list it, and an unknown group or option is answered with the nearest one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.config.schema import TrainConfig
from sightline.errors import ConfigError, listing, nearest

PRESETS = Path(__file__).parent.parent / "config" / "presets"


def compose(words: Sequence[str], config_dir: str | None = None, config_name: str = "train") -> dict[str, Any]:
    """The composed config as a plain dict. Raises ConfigError for a word, group or option that is wrong."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir: there is no directory '{config_dir}'.")
        search = [f"hydra.searchpath=[{_quoted(Path(config_dir).resolve().as_uri())}]"]
    try:
        with hydra.initialize_config_dir(str(PRESETS), version_base="1.3"):
            config = hydra.compose(config_name, overrides=[*search, *_overrides(words, _groups(config_dir))])
            plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def checked(words: Sequence[str], config_dir: str | None = None, config_name: str = "train") -> TrainConfig:
    """The composed and checked config; torch is not imported."""
    return TrainConfig.from_dict(compose(words, config_dir, config_name), also=tuple(_groups(config_dir)))


def changes(words: Sequence[str], groups: Sequence[str], command: str) -> dict[str, Any]:
    """`key=value` words as a nested dict, for a run that has its config already; only keys of `groups` may be
    changed."""
    from omegaconf import OmegaConf

    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise ConfigError(f"'{word}' is no change of the config; expected key=value.")
        if key.partition(".")[0] not in groups:
            raise ConfigError(
                f"{command} takes changes of {listing(f'{group}.…' for group in groups)} alone, not '{key}': "
                f"the rest of the config made the run what it is."
            )
    made = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)), resolve=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def user_code() -> None:
    """Lets a `_target_` name a module in the current directory, after everything that is installed."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _groups(config_dir: str | None) -> dict[str, list[str]]:
    """The preset groups and their options, ours and the user's."""
    found: dict[str, list[str]] = {}
    for root in (PRESETS, *([Path(config_dir)] if config_dir else [])):
        for file in sorted(root.glob("*/*.yaml")):
            found.setdefault(file.parent.name, []).append(file.stem)
    return found


def _overrides(words: Sequence[str], groups: dict[str, list[str]]) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import OverrideParseException

    made = []
    for word in words:
        try:
            (override,) = OverridesParser.create().parse_overrides([word])
        except OverrideParseException as error:
            raise ConfigError(
                f"'{word}' is no change of the config; expected key=value. {_first_line(error)}"
            ) from error
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise ConfigError(f"'{word}' names several values; `train` makes one run. For a list, write {key}=[…].")
        if key in groups and isinstance(value, str):
            if value not in groups[key]:
                options = groups[key]
                told = f"{key}={value}: there is no such preset.{nearest(value, options)}"
                raise ConfigError(f"{told} There are: {listing(options)}.")
            made.append(word)
        elif override.type == OverrideType.CHANGE and not key.startswith("hydra"):
            made.append(f"++{word}")
        else:
            made.append(word)
    return made


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
