"""Opens the datasets of torchvision by name and downloads them on request. torchvision verifies the checksums."""

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
    """Opens the train, val and test splits that the torchvision dataset `dataset` has.

    Files are read from `root`; with `download`, missing files are downloaded to it. The other arguments are the same as
    for `open_source`. Raises DataError for an unknown dataset, missing or damaged files and a failed download."""
    library = import_optional("torchvision.datasets")
    if dataset is None:
        raise DataError(f"{arg.dataset}: the source 'torchvision' needs the name of a dataset, such as CIFAR10.")
    if dataset not in library.__all__ or not isinstance(getattr(library, dataset), type):
        raise DataError(
            f"{arg.dataset}: torchvision has no dataset '{dataset}'.{did_you_mean(dataset, library.__all__)}"
        )
    kind = getattr(library, dataset)
    arguments = _parameters(kind)
    options: dict[str, Any] = {}
    if "root" in arguments:
        if root is None:
            raise DataError(f"{arg.root}: {dataset} needs a directory for its files. Set {arg.root}=PATH.")
        options["root"] = str(expand_user(root))
    if download:
        if "download" not in arguments:
            raise DataError(f"{arg.download}: {dataset} cannot be downloaded automatically. {_manual_advice(kind)}.")
        options["download"] = True
    if "train" in arguments:
        parts = {"train": _create(kind, {**options, "train": True}), "test": _create(kind, {**options, "train": False})}
    elif "split" in arguments:
        parts = _create_splits(kind, options)
    else:
        parts = {"train": _create(kind, options)}
    source = as_source(parts, classes=classes, val=val, test=test, seed=seed, name=dataset, numbers=numbers)
    directory = Path(options["root"]) if "root" in options else None
    assert isinstance(source, ListSource)
    return replace(source, info=replace(source.info, root=directory))


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a constructor, including those of base classes that receive its **kwargs."""
    merged: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        merged = {**parameters, **merged}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return merged


def _create_splits(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    reason = ""
    for split, names in _SPLITS.items():
        for name in names:
            try:
                parts[split] = _create(kind, {**options, "split": name})
                break
            except _NoSuchSplitError as error:
                reason = str(error)
    if "train" not in parts:
        raise DataError(
            f"{arg.dataset}: {kind.__name__} has no split 'train': {reason} Create it in Python and pass the dataset."
        )
    return parts


class _NoSuchSplitError(Exception):
    pass


def _create(kind: type, options: dict[str, Any]) -> Any:
    name = kind.__name__
    try:
        return kind(**options)
    except ValueError as error:
        if "split" in options and "split" in str(error):
            raise _NoSuchSplitError(error) from error
        raise DataError(
            f"{arg.dataset}: {name} cannot be created with {arg.root}='{options.get('root')}': {error}"
        ) from error
    except (RuntimeError, OSError) as error:  # missing files, a wrong checksum, no network, a full disk
        if options.get("download"):
            raise DataError(
                f"{arg.download}: {name} could not be downloaded to '{options['root']}': {error}"
            ) from error
        advice = f"Set {arg.download}=true" if "download" in _parameters(kind) else _manual_advice(kind)
        reason = str(error).strip().rstrip(".")
        raise DataError(
            f"{arg.root}: {name} is missing or incomplete in '{options.get('root')}' ({reason}). {advice}, or set "
            f"{arg.root} to the directory that was passed as root to torchvision's {name}."
        ) from error
    except (TypeError, ImportError) as error:
        raise DataError(
            f"{arg.dataset}: {name} cannot be created from its name alone: {error}. Create it in Python."
        ) from error


def _manual_advice(kind: type) -> str:
    return f"Get its files as described in the documentation of torchvision.datasets.{kind.__name__}"
