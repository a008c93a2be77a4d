"""CSV tables: which columns, which rows, and what is wrong with a row."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import write_image, write_table
from sightline.data.tables import Entry, read_csv
from sightline.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with the images a.png, b.png and c.png."""
    for name in "abc":
        write_image(tmp_path / "data" / f"{name}.png")
    return tmp_path / "data"


def read(root: Path, header: str, *rows: str, encoding: str = "utf-8", **columns: str) -> list[Entry]:
    return read_csv(write_table(root / "info.csv", header, rows, encoding=encoding), root, root, **columns)


def pairs(entries: list[Entry]) -> list[tuple[str, str]]:
    return [(entry.file.name, entry.label) for entry in entries]


AB = [("a.png", "cat"), ("b.png", "dog")]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("files,type", "{}.png,{}"),
        pytest.param(",image name,label", "0,{}.png,{}", id="unnamed index"),
        ("file,target", "{}.png,{}"),
        ("filename,label", "{}.png,{}"),
        ("label,filename", None),
        ("image,class", "{}.png,{}"),
        ("width,files,height,type,split", "4,{}.png,4,{},train"),
        (" files , type ", " {}.png , {} "),
    ],
)
def test_the_usual_columns_are_found_in_any_order(root: Path, header: str, row: str | None) -> None:
    rows = [row.format("a", "cat"), row.format("b", "dog")] if row else ["cat,a.png", "dog,b.png"]
    assert pairs(read(root, header, *rows)) == AB


def test_columns_can_be_configured(root: Path) -> None:
    entries = read(
        root, "files,picture,type,kind", "x,a.png,1,cat", "y,b.png,2,dog", image_column="picture", label_column="kind"
    )
    assert pairs(entries) == AB


def test_the_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_first_column(root: Path) -> None:
    assert pairs(read(root, "files,type", "a.png,cat", "b.png,dog", encoding="utf-8-sig")) == AB


def test_other_line_ends_quotes_and_blank_lines_are_fine(root: Path) -> None:
    (root / "info.csv").write_bytes(b'files,type\r\n"a.png","cat"\r\n\r\nb.png,dog\r\n,,\r\n')
    assert pairs(read_csv(root / "info.csv", root, root)) == AB


def test_a_quoted_comma_belongs_to_the_label(root: Path) -> None:
    assert pairs(read(root, "files,type", 'a.png,"cat, big"')) == [("a.png", "cat, big")]


def test_labels_stay_text(root: Path) -> None:
    assert [label for _, label in pairs(read(root, "files,type", "a.png,03", "b.png,1e3"))] == ["03", "1e3"]


def test_files_are_relative_to_the_images_folder(root: Path) -> None:
    write_image(root / "pictures" / "deep" / "d.png")
    table = write_table(root / "info.csv", "files,type", ["deep/d.png,cat"])
    assert read_csv(table, root / "pictures", root)[0].file == root / "pictures" / "deep" / "d.png"


@pytest.mark.parametrize(
    ("header", "rows", "told"),
    [
        ("a,b", [], r"info\.csv' has none of the columns files, .*it has: a, b.*data\.image_column"),
        ("files,b", ["a.png,cat"], r"none of the columns type, label.*data\.label_column"),
        ("", [], "it has: nothing"),
        ("files,type", [], "has a header but no rows"),
        ("files,type", ["", ""], "has a header but no rows"),
        ("files,type", ["a.png,cat", "aa.png,dog"], r"row 3: the file '.*aa\.png' does not exist. Did you mean 'a.png"),
        ("files,type", ["a.png,cat", "", "no.png,dog"], r"row 4: the file"),
        ("files,type", ["a.png,cat", "b.png"], r"row 3: 1 cells, expected 2"),
        ("files,type", ["a.png,cat,big"], r"row 2: 3 cells, expected 2"),
        ("files,type", ["a.png,"], r"row 2: no label in column 'type'"),
        ("files,type", ["a.png,  "], r"row 2: no label in column 'type'"),
        ("files,type", [",cat"], r"row 2: no file name"),
        ("files,type", ["a.png,cat", "b.png,dog", "a.png,dog"], r"row 4: 'a.png' is listed twice, first in row 2"),
        ("files,type", ["a.png,cat", "./a.png,cat"], r"row 3: './a.png' is listed twice"),
        ("files,type", ["../data/../secret.png,cat"], r"row 2: '\.\./data/.*' lies outside the data directory"),
        ("files,type", ["/etc/secret.png,cat"], r"row 2: '/etc/secret\.png' lies outside"),
        ("files,type", ["pictures,cat"], r"row 2: the file '.*pictures' does not exist"),
        ("files,type", ['"a.png,cat'], r"no CSV file"),
    ],
)
def test_what_is_wrong_is_told_with_file_row_and_column(root: Path, header: str, rows: list[str], told: str) -> None:
    write_image(root.parent / "secret.png")
    (root / "pictures").mkdir()
    with pytest.raises(DataError, match=told) as caught:
        read(root, header, *rows)
    assert "info.csv" in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.png", "../../secret.png", "inner/../../secret.png"])
@pytest.mark.parametrize("here", [".", "..", "data/.."])
def test_a_row_cannot_leave_the_root_however_the_root_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, here: str
) -> None:
    # the root as the user writes it from where they stand, not as an absolute path
    stand = tmp_path / "a" / "b" / "c"
    (stand / "data").mkdir(parents=True)
    monkeypatch.chdir(stand)
    for folder in (stand, *stand.parents[:4]):
        if folder.is_relative_to(tmp_path):
            write_image(folder / "secret.png")
            write_image(folder / "inner" / "x.png")
    table = write_table(Path(here) / "info.csv", "files,type", [f"{name},cat"])
    with pytest.raises(DataError, match="lies outside the data directory"):
        read_csv(table, Path(here), Path(here))


def test_a_relative_root_works(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(root / "info.csv", "files,type", ["a.png,cat", "b.png,dog"])
    monkeypatch.chdir(root)
    entries = read_csv(Path("info.csv"), Path(), Path())
    assert pairs(entries) == AB
    assert entries[0].file.is_file()


def test_a_linked_folder_inside_the_root_is_the_users_own(root: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "d.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert pairs(read(root, "files,type", "linked/d.png,cat")) == [("d.png", "cat")]


def test_a_wrong_column_name_gets_the_nearest(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.image_column: .*no column 'picure'. Did you mean 'picture'\?"):
        read(root, "picture,type", "a.png,cat", image_column="picure")
    with pytest.raises(DataError, match=r"data\.label_column: .*no column 'typ'. Did you mean 'type'\?"):
        read(root, "picture,type", "a.png,cat", image_column="picture", label_column="typ")


def test_a_table_that_is_no_utf8_is_an_error_that_names_it(root: Path) -> None:
    (root / "info.csv").write_bytes(b"files,type\na.png,K\xe4fer\n")
    with pytest.raises(DataError, match=r"info\.csv' is no CSV file in UTF-8"):
        read_csv(root / "info.csv", root, root)


LABEL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)


@settings(deadline=None, max_examples=60)
@given(labels=st.lists(LABEL, min_size=1, max_size=3), other=st.text("ab,\"'\n ", max_size=8))
def test_what_pythons_csv_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], other: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "written"
    names = [f"{i}.png" for i in range(len(labels))]
    for name in names:
        if not (root / name).exists():
            write_image(root / name)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["note", "files", "type"], *([other, *pair] for pair in zip(names, labels))])  # noqa: B905
    (root / "info.csv").write_bytes(text.getvalue().encode())
    found = pairs(read_csv(root / "info.csv", root, root))
    assert found == [(name, label.strip()) for name, label in zip(names, labels, strict=True)]
