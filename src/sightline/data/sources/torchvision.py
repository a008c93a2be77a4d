"""The data sets of torchvision by name, downloaded where that is asked for; torchvision checks the checksums."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline.core.errors import DataError, arg, did_you_mean
from sightline.core.files import expand_user
from sightline.core.locate import import_optional
from sightline.data.sources.adapt import as_source
from sightline.data.sources.listing import ListSource

_SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}


def open_torchvision(
    dataset: str | None,
    root: str | Path | None,
    download: bool,
    *,
    classes: int | Sequence[str] | None,
    val: float,
    test: float,
    seed: int,
    numbers: bool = False,
) -> ListSource:
    """The splits that a data set of torchvision has.

    Raises DataError for a name that torchvision has not, and for data that is not there and may not be downloaded."""
    library = import_optional("torchvision.datasets")
    if dataset is None:
        raise DataError(f"{arg.dataset}: the source 'torchvision' needs the name of a data set, such as CIFAR10.")
    if dataset not in library.__all__ or not isinstance(getattr(library, dataset), type):
        raise DataError(
            f"{arg.dataset}: torchvision has no data set '{dataset}'.{did_you_mean(dataset, library.__all__)}"
        )
    kind = getattr(library, dataset)
    arguments = _parameters(kind)
    given: dict[str, Any] = {}
    if "root" in arguments:
        if root is None:
            raise DataError(f"{arg.root}: say where the files of {dataset} are or are to go; set {arg.root}=PATH.")
        given["root"] = str(expand_user(root))
    if download:
        if "download" not in arguments:
            raise DataError(f"{arg.download}: {dataset} cannot be downloaded; {_by_hand(kind)}")
        given["download"] = True
    if "train" in arguments:
        parts = {"train": _make(kind, {**given, "train": True}), "test": _make(kind, {**given, "train": False})}
    elif "split" in arguments:
        parts = _by_split(kind, given)
    else:
        parts = {"train": _make(kind, given)}
    source = as_source(parts, classes=classes, val=val, test=test, seed=seed, name=dataset, numbers=numbers)
    place = Path(given["root"]) if "root" in given else None
    assert isinstance(source, ListSource)
    return replace(source, info=replace(source.info, root=place))


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor and of those that it hands its **kwargs on to."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        found = {**parameters, **found}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found


def _by_split(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    refused = ""
    for split, names in _SPLITS.items():
        for name in names:
            try:
                parts[split] = _make(kind, {**given, "split": name})
                break
            except _NoSuchSplitError as error:
                refused = str(error)
    if "train" not in parts:
        raise DataError(
            f"{arg.dataset}: {kind.__name__} has no split 'train': {refused} Make it in Python and hand it over."
        )
    return parts


class _NoSuchSplitError(Exception):
    pass


def _make(kind: type, given: dict[str, Any]) -> Any:
    name = kind.__name__
    try:
        return kind(**given)
    except ValueError as error:
        if "split" in given and "split" in str(error):
            raise _NoSuchSplitError(error) from error
        raise DataError(f"{arg.dataset}: {name} cannot be made of {arg.root}='{given.get('root')}': {error}") from error
    except (RuntimeError, OSError) as error:  # not there, a wrong checksum, no network, no room on the disk
        if given.get("download"):
            raise DataError(f"{arg.download}: {name} could not be downloaded to '{given['root']}': {error}") from error
        advice = f"Set {arg.download}=true" if "download" in _parameters(kind) else _by_hand(kind)
        reason = str(error).strip().rstrip(".")
        raise DataError(
            f"{arg.root}: {name} is not in '{given.get('root')}', or not whole ({reason}). {advice}, or set "
            f"{arg.root} to the directory that torchvision's {name} was given as root."
        ) from error
    except (TypeError, ImportError) as error:
        raise DataError(
            f"{arg.dataset}: {name} cannot be made from a name alone: {error}. Make it in Python."
        ) from error


def _by_hand(kind: type) -> str:
    return f"get its files as the documentation of torchvision.datasets.{kind.__name__} says"
