"""Labels and class names that a torch data set keeps beside its items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset, TensorDataset

from sightline.errors import DataError


def dataset_classes(dataset: Any, name: str) -> tuple[str, ...] | None:
    """The class names that a data set carries in `classes`, in label order."""
    if isinstance(dataset, Subset):
        return dataset_classes(dataset.dataset, name)
    if isinstance(dataset, ConcatDataset):
        found = {dataset_classes(part, name) for part in dataset.datasets}
        if len(found) > 1:
            raise DataError(f"{name}: its parts do not name the same classes in the same order.")
        return found.pop()
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        return None
    names = [", ".join(map(str, given)) if isinstance(given, tuple | list) else str(given) for given in classes]
    if all(text.startswith(f"{i} - ") for i, text in enumerate(names)):  # torchvision's MNIST says "0 - zero"
        names = [str(i) for i in range(len(names))]
    if len(set(names)) < len(names):  # ImageNet has two cranes
        names = [f"{i} {text}" for i, text in enumerate(names)]
    return tuple(names)


def quick_labels(dataset: Any) -> list[int | float | str] | None:
    """Every label without reading an item, where a data set keeps them and leaves them as they are; else None."""
    if isinstance(dataset, Subset):
        inner = quick_labels(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [quick_labels(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    if isinstance(dataset, TensorDataset):
        found: Any = dataset.tensors[1] if len(dataset.tensors) == 2 else None
    else:
        joint = getattr(dataset, "transforms", None)  # torchvision's own keeps the two apart and says so
        if (
            getattr(dataset, "target_transform", None) is not None
            or getattr(joint, "target_transform", joint) is not None
        ):
            return None
        names = ("targets", "labels", "_labels")
        found = next((value for name in names if (value := getattr(dataset, name, None)) is not None), None)
    found = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(found, list | tuple) or len(found) != len(dataset):
        return None
    return list(found) if all(type(label) in (int, float, str) for label in found) else None
