"""Validates the dict, maps its keys to keys of the config, and names them in messages."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.config.names import NAMES as CONFIG_NAMES
from sightline.config.schema import TrainConfig
from sightline.core import locate
from sightline.core.errors import ConfigError, argument_names, did_you_mean
from sightline.params.defaults import params as defaults

ALIASES = {
    "batch_size": "data.batch_size",
    "eval_batch_size": "data.eval_batch_size",
    "n_classes": "data.classes",
    "normalise_mean": "data.preprocess.mean",
    "normalise_std": "data.preprocess.std",
    "is_image_color": "data.preprocess.channels",
    "flip_probability": "data.augment.flip",
    "num_epochs": "trainer.max_epochs",
    "eval_freq": "trainer.eval_every",
    "save_freq": "trainer.keep_every",
    "device": "trainer.device",
    "manual_seed": "seed",
}
MAY_CHANGE = (*list(defaults)[:7], "num_epochs", "save_freq", "device", "mode")
"""Keys whose values may change when a run is resumed."""
_SWITCHES = ("shuffle_dataset", "flip_images", "normalise_images", "is_image_color")
_BY_KEY = {name: f"params['{key}']" for key, name in ALIASES.items()} | {
    "data.preprocess.size": "params['image_height'] and params['image_width']",
    "data.root": "datadir",
}
NAMES: dict[str, str | None] = {
    **{neutral: _BY_KEY[key] for neutral, key in CONFIG_NAMES.items() if key in _BY_KEY},
    **_BY_KEY,
    "directory": "logdir",
    "transforms": "params['additional_transforms']",
    "channels=3": "params['is_image_color'] = True",
    "channels=1": "params['is_image_color'] = False",
    "on_bad": None,
    "weights": None,
    "store": None,
}
"""Maps neutral argument names and config keys to the names that the dict uses, for messages."""


def with_defaults(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all 32 keys, with default values for missing ones.

    Raises ConfigError for an invalid value and for a key that looks misspelt; warns of other unknown keys."""
    if not isinstance(params, Mapping):
        raise ConfigError(f"params: expected a dict, found {type(params).__name__}.")
    for key in params:
        if key not in defaults:
            suggestion = did_you_mean(str(key), defaults)
            if suggestion:
                raise ConfigError(f"params['{key}']: unknown key.{suggestion}")
            warnings.warn(f"params['{key}']: unknown key; it is ignored.", UserWarning, stacklevel=3)
    settings = defaults | dict(params)
    if settings["optim_class"] is not defaults["optim_class"] and "optim_kwargs" not in params:
        settings["optim_kwargs"] = {}  # the default arguments belong to the default class
    for key in _SWITCHES:
        if not isinstance(settings[key], bool):
            raise ConfigError(f"params['{key}']: expected True or False, found {settings[key]!r}.")
    channels = 3 if settings["is_image_color"] else 1
    for key in ("normalise_mean", "normalise_std") if settings["normalise_images"] else ():
        if not isinstance(settings[key], list | tuple) or len(settings[key]) != channels:
            expected = "3 numbers for colour images" if channels == 3 else "1 number for grayscale images"
            raise ConfigError(f"params['{key}']: expected {expected}, found {settings[key]!r}.")
    if not isinstance(settings["n_classes"], int):
        raise ConfigError(f"params['n_classes']: expected an integer, found {settings['n_classes']!r}.")
    for key in ("image_height", "image_width", "eval_batch_size"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise ConfigError(f"params['{key}']: expected an integer >= 1, found {settings[key]!r}.")
    return settings


def as_config(settings: Mapping[str, Any], datadir: str | Path) -> TrainConfig:
    """Returns the dict's settings of the images and the training as a config, validated by its schema."""
    tree: dict[str, Any] = {}
    normalise, flip = settings["normalise_images"], settings["flip_images"]
    values = {
        "is_image_color": 3 if settings["is_image_color"] else 1,
        "normalise_mean": list(settings["normalise_mean"]) if normalise else [0.0],
        "normalise_std": list(settings["normalise_std"]) if normalise else [1.0],
        "flip_probability": settings["flip_probability"] if flip else 0.0,
        "device": str(settings["device"]),
    }
    constants = {
        "data.root": str(datadir),
        "data.val": 0,
        "data.test": 0,
        "data.preprocess.size": [settings["image_height"], settings["image_width"]],
        "data.augment.vertical_flip": values["flip_probability"],
        "data.augment.shift": 0,
    }
    for name, value in {**{ALIASES[key]: values.get(key, settings[key]) for key in ALIASES}, **constants}.items():
        *groups, last = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    with argument_names(NAMES):
        return TrainConfig.from_dict(tree)


def describe_value(value: Any) -> Any:
    """Converts a value of the dict to plain data for comparison; classes and functions become their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe_value(item) for item in value]
    if isinstance(value, nn.Module | torch.device | torch.dtype):
        return repr(value)
    if callable(value):
        return locate.qualified_name(value) or locate.qualified_name(type(value))
    return f"{locate.qualified_name(type(value))}: {value!s}".partition(" at 0x")[0]
