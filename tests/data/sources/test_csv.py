"""CSV tables: which columns and rows are read, and errors that name the row."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.images import write_image, write_table
from sightline.core.errors import DataError
from sightline.data.records import Row
from sightline.data.sources.csv import Columns, TableFiles, read_csv
from sightline.data.sources.tree import DirectoryTree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with the images a.png, b.png and c.png."""
    for name in "abc":
        write_image(tmp_path / "data" / f"{name}.png")
    return tmp_path / "data"


def read(root: Path, header: str, *rows: str, encoding: str = "utf-8", images: str = "", **columns: str) -> list[Row]:
    write_table(root / "info.csv", header, rows, encoding=encoding)
    return reread(root, images, **columns)


def reread(root: Path, images: str = "", **columns: str) -> list[Row]:
    return read_csv(TableFiles(DirectoryTree(root)), "info.csv", images, Columns(**columns))


def pairs(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.image.name, row.label) for row in rows if isinstance(row.image, Path)]


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
    entries = read(root, "files,photo,type,kind", "x,a.png,1,cat", "y,b.png,2,dog", image="photo", label="kind")
    assert pairs(entries) == AB


def test_the_byte_order_mark_of_a_spreadsheet_is_not_part_of_the_first_column(root: Path) -> None:
    assert pairs(read(root, "files,type", "a.png,cat", "b.png,dog", encoding="utf-8-sig")) == AB


def test_other_line_ends_quotes_and_blank_lines_are_accepted(root: Path) -> None:
    (root / "info.csv").write_bytes(b'files,type\r\n"a.png","cat"\r\n\r\nb.png,dog\r\n,,\r\n')
    assert pairs(reread(root)) == AB


def test_a_quoted_comma_belongs_to_the_label(root: Path) -> None:
    assert pairs(read(root, "files,type", 'a.png,"cat, big"')) == [("a.png", "cat, big")]


def test_labels_stay_text(root: Path) -> None:
    assert [label for _, label in pairs(read(root, "files,type", "a.png,03", "b.png,1e3"))] == ["03", "1e3"]


def test_files_are_relative_to_the_images_folder(root: Path) -> None:
    write_image(root / "photos" / "deep" / "d.png")
    rows = read(root, "files,type", "deep/d.png,cat", images="photos")
    assert rows[0].image == root / "photos" / "deep" / "d.png"
    assert rows[0].id == "photos/deep/d.png"


@pytest.mark.parametrize(
    ("header", "rows", "message"),
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
        ("files,type", ["../data/../secret.png,cat"], r"row 2: '\.\./data/.*' is outside the data directory"),
        ("files,type", ["/etc/secret.png,cat"], r"row 2: '/etc/secret\.png' is outside"),
        ("files,type", ["photos,cat"], r"row 2: the file '.*photos' does not exist"),
        ("files,type", ['"a.png,cat'], r"is not a valid CSV file"),
    ],
)
def test_an_error_names_the_file_the_row_and_the_column(root: Path, header: str, rows: list[str], message: str) -> None:
    write_image(root.parent / "secret.png")
    (root / "photos").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        read(root, header, *rows)
    assert "info.csv" in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.png", "../../secret.png", "inner/../../secret.png"])
@pytest.mark.parametrize("relative_root", [".", "..", "data/.."])
def test_a_row_cannot_leave_the_root_however_the_root_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, relative_root: str
) -> None:
    # the root as a user writes it, relative to the current directory
    current = tmp_path / "a" / "b" / "c"
    (current / "data").mkdir(parents=True)
    monkeypatch.chdir(current)
    for folder in (current, *current.parents[:4]):
        if folder.is_relative_to(tmp_path):
            write_image(folder / "secret.png")
            write_image(folder / "inner" / "x.png")
    with pytest.raises(DataError, match="is outside the data directory"):
        read(Path(relative_root), "files,type", f"{name},cat")


def test_a_relative_root_works(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    rows = read(Path(), "files,type", "a.png,cat", "b.png,dog")
    assert pairs(rows) == AB
    assert rows[0].image == Path("a.png")
    assert rows[0].where == "info.csv, row 2"


def test_a_name_that_goes_out_of_the_root_and_back_is_inside(root: Path) -> None:
    rows = read(root, "files,type", "../data/a.png,cat", f"{root}/b.png,dog")
    assert [row.id for row in rows] == ["a.png", "b.png"]


def test_the_other_columns_are_kept(root: Path) -> None:
    header = ",Unnamed: 0,files,type,site, age ,split"
    rows = read(root, header, "0,0,a.png,cat,Bern,7,Train", "1,1,b.png,dog,,8,VALID", split="split")
    assert [dict(row.columns) for row in rows] == [{"site": "Bern", "age": "7"}, {"site": "", "age": "8"}]
    assert [row.split for row in rows] == ["train", "val"]
    assert read(root, ",files,type", "0,a.png,cat")[0].columns == {}


def test_a_hidden_file_that_a_row_names_is_found(root: Path) -> None:
    write_image(root / ".hidden.png")
    assert read(root, "files,type", ".hidden.png,cat")[0].id == ".hidden.png"


def test_a_file_name_with_a_nul_does_not_exist(root: Path) -> None:
    with pytest.raises(DataError, match=r"row 2: the file .* does not exist"):
        read(root, "files,type", "a.png\0x,cat")


def test_the_split_column_accepts_three_splits(root: Path) -> None:
    with pytest.raises(DataError, match=r"row 3: 'tets' is not a split\. Did you mean 'test'\?.*data\.split_column"):
        read(root, "files,type,part", "a.png,cat,train", "b.png,dog,tets", split="part")
    with pytest.raises(DataError, match="row 2: '' is not a split"):
        read(root, "files,type,part", "a.png,cat,", split="part")
    with pytest.raises(DataError, match=r"data\.split_column: .*no column 'prt'\. Did you mean 'part'\?"):
        read(root, "files,type,part", "a.png,cat,train", split="prt")
    with pytest.raises(DataError, match=r"data\.group_column: .*no column 'patient'"):
        read(root, "files,type,part", "a.png,cat,train", group="patient")


def test_a_linked_folder_inside_the_root_is_followed(root: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "d.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert pairs(read(root, "files,type", "linked/d.png,cat")) == [("d.png", "cat")]
    (root / "broken.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"row 2: the file .*broken\.png' does not exist"):
        read(root, "files,type", "broken.png,cat")


def test_an_unknown_column_name_suggests_the_nearest(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.image_column: .*no column 'photograh'. Did you mean 'photograph'\?"):
        read(root, "photograph,type", "a.png,cat", image="photograh")
    with pytest.raises(DataError, match=r"data\.label_column: .*no column 'typ'. Did you mean 'type'\?"):
        read(root, "photograph,type", "a.png,cat", image="photograph", label="typ")


def test_a_table_that_is_not_utf8_is_an_error_that_names_it(root: Path) -> None:
    (root / "info.csv").write_bytes(b"files,type\na.png,K\xe4fer\n")
    with pytest.raises(DataError, match=r"info\.csv' is not a valid CSV file in UTF-8"):
        reread(root)


LABEL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)


@settings(max_examples=60)
@given(labels=st.lists(LABEL, min_size=1, max_size=3), other=st.text("ab,\"'\n ", max_size=8))
def test_tables_of_pythons_csv_writer_are_read_back(
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
    result = pairs(reread(root))
    assert result == [(name, label.strip()) for name, label in zip(names, labels, strict=True)]
