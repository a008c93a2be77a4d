"""Converts Hugging Face datasets to rows, without importing `datasets`. Images are read as their encoded bytes."""

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
    """A reference to the encoded image in one row; `identity` is the fingerprint of the dataset, or None."""

    data: Any
    column: str
    row: int
    where: str
    identity: str | None

    @property
    def token(self) -> str | None:
        """The fingerprint of the dataset and the row; None if images are external files, which it does not cover."""
        return None if self.identity is None else f"{self.identity}|{self.row}"

    def read(self) -> bytes:
        """Returns the encoded image. Raises DataError if the cell is empty or its file cannot be read."""
        cell = self.data[self.row][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise DataError(f"{self.where}: no image in column '{self.column}'.")
        try:
            return bytes(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where}: cannot read '{cell['path']}': {error.strerror}.") from error


def is_hugging_face(data: Any) -> bool:
    """Whether `data` is a `datasets.Dataset` or an instance of a subclass."""
    return any(f"{kind.__module__}.{kind.__name__}" == "datasets.arrow_dataset.Dataset" for kind in type(data).__mro__)


def hugging_face_rows(data: Any, split: str, numbers: bool = False) -> tuple[list[Row], tuple[str, ...] | None]:
    """Returns the rows of a dataset, and the class names in label order if its label column is a ClassLabel, else None.

    The image column has the feature type Image; the label column has ClassLabel, or Value with `numbers` (regression).
    Raises DataError if one is missing or ambiguous, a label is invalid, or the dataset is empty or has a transform."""
    name = f"the {split} dataset"
    if (data.format or {}).get("type") == "custom":
        raise DataError(
            f"{name} has a transform (set_transform). Images are decoded once, so its result would be the same in "
            f"every epoch. Remove it with .with_format(None), and set random transforms with {arg.transforms}."
        )
    fingerprint = getattr(data, "_fingerprint", None)
    data = data.with_format(None)
    features: Mapping[str, Any] = data.features
    image = _column(features, "Image", IMAGE_COLUMNS, name, "Cast one with .cast_column(name, datasets.Image())")
    kind = "Value" if numbers else "ClassLabel"
    label = _column(features, kind, LABEL_COLUMNS, name, "Choose one with .rename_column(name, 'label')")
    if type(features[image]).__name__ != "Image":
        raise DataError(
            f"{name}: the column '{image}' is not an Image. Cast it with .cast_column('{image}', datasets.Image())."
        )
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
    if kind == "Value" and typed and named and not set(typed) & set(usual):  # it may be the row number or a size
        raise DataError(
            f"{name} has class labels ({join_names(named)}) and other columns ({join_names(typed)}). Choose the number "
            f"to predict with .rename_column(name, 'target'), or remove {arg.target}=number."
        )
    if len(typed) == 1:
        return typed[0]
    matches = [key for key in usual if key in (typed or features)]
    if matches:
        return matches[0]
    have = f"{len(typed)} columns of {kind}: {join_names(typed)}" if typed else f"the columns {join_names(features)}"
    raise DataError(f"{name} has {have}; expected {kind} in one of: {join_names(usual)}. {advice}.")
