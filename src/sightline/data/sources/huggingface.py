"""Hugging Face data sets that were handed over, recognised without importing their library. Images are read as the
encoded bytes they are stored as."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.core.errors import DataError, arg, join_names
from sightline.data.records import NO_COLUMNS, Row
from sightline.data.sources.labels import label_text, parse_number

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "target", "class")
_PLAIN = ("string", "large_string", "bool", "int", "uint", "float")


@dataclass(frozen=True, slots=True)
class HuggingFaceImage:
    """The encoded image in one row; `identity` is that of the data set."""

    data: Any
    column: str
    row: int
    where: str
    identity: str | None

    @property
    def token(self) -> str | None:
        """The data set's fingerprint and the row; None where the images are files beside it, which it says nothing
        about."""
        return None if self.identity is None else f"{self.identity}|{self.row}"

    def read(self) -> bytes:
        """The image's bytes."""
        cell = self.data[self.row][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise DataError(f"{self.where}: no image in column '{self.column}'.")
        try:
            return bytes(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where}: cannot read '{cell['path']}': {error.strerror}.") from error


def is_hugging_face(data: Any) -> bool:
    """Whether this is a Dataset of the library `datasets`."""
    return any(f"{kind.__module__}.{kind.__name__}" == "datasets.arrow_dataset.Dataset" for kind in type(data).__mro__)


def hugging_face_rows(data: Any, split: str, numbers: bool = False) -> tuple[list[Row], tuple[str, ...] | None]:
    """The rows of a data set and, where its label column names them, the classes in order. With `numbers`, the label
    column is one of plain values."""
    name = f"the {split} data set"
    if (data.format or {}).get("type") == "custom":
        raise DataError(
            f"{name} has a transform (set_transform). Images are decoded once, so it would be frozen; take it out with "
            f".with_format(None) and give what is random as an augmentation: {arg.transforms}."
        )
    fingerprint = getattr(data, "_fingerprint", None)
    data = data.with_format(None)
    features: Mapping[str, Any] = data.features
    image = _column(features, "Image", IMAGE_COLUMNS, name, "cast one with .cast_column(name, datasets.Image())")
    kind = "Value" if numbers else "ClassLabel"
    label = _column(features, kind, LABEL_COLUMNS, name, "name the one to use with .rename_column(name, 'label')")
    if type(features[image]).__name__ != "Image":
        raise DataError(f"{name}: the column '{image}' is no Image; use .cast_column('{image}', datasets.Image()).")
    names = getattr(features[label], "names", None)
    classes = None if names is None else tuple(map(str, names))
    plain = [key for key, kind in features.items() if str(getattr(kind, "dtype", "")).rstrip("0123456789") in _PLAIN]
    extra = [key for key in plain if key not in (image, label)]
    cells = data.select_columns([label, *extra])[:]
    stored = data.data.column(image)
    embedded = all(chunk.field("bytes").null_count == 0 for chunk in stored.chunks)
    identity = fingerprint if embedded else None
    encoded = data.select_columns([image]).cast_column(image, type(features[image])(decode=False))
    width = max(5, len(str(max(len(data) - 1, 0))))
    rows = []
    for i, value in enumerate(cells[label]):
        where = f"{name}, row {i}"
        place = f"{where}, column '{label}'"
        extra_cells = (
            {key: "" if cells[key][i] is None else str(cells[key][i]) for key in extra} if extra else NO_COLUMNS
        )
        reference = HuggingFaceImage(encoded, image, i, where, identity)
        rows.append(
            Row(
                f"{split}/{i:0{width}d}",
                reference,
                repr(parse_number(value, place)) if numbers else label_text(value, classes, place),
                where,
                extra_cells,
            )
        )
    if not rows:
        raise DataError(f"{name} has no rows.")
    return rows, classes


def _column(features: Mapping[str, Any], kind: str, usual: tuple[str, ...], name: str, advice: str) -> str:
    typed = [key for key, feature in features.items() if type(feature).__name__ == kind]
    named = [key for key, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if kind == "Value" and typed and named and not set(typed) & set(usual):  # a number of the row, or a size, say
        raise DataError(
            f"{name} has labels that are classes, {join_names(named)}, and beside them {join_names(typed)}; which is "
            f"the "
            f"number to predict? Name it with .rename_column(name, 'target'), or leave {arg.target}=number out."
        )
    if len(typed) == 1:
        return typed[0]
    found = [key for key in usual if key in (typed or features)]
    if found:
        return found[0]
    have = f"{len(typed)} columns of {kind}: {join_names(typed)}" if typed else f"the columns {join_names(features)}"
    raise DataError(f"{name} has {have}; expected {kind} in one of {join_names(usual)}: {advice}.")
