"""Reading and writing YAML files as plain dicts, without the surprising conversions of YAML 1.1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.config.schema import TrainConfig
from sightline.core.errors import ConfigError
from sightline.core.yamlfile import dump_yaml, read_yaml
from sightline.runs.directory import Run


def read(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-2e+4", -2e4), ("1.5e-3", 1.5e-3), ("0.1", 0.1), ("-.5e3", -500.0),
        (".5", 0.5), ("1.", 1.0), (".inf", math.inf), ("-.inf", -math.inf),
    ],
)  # fmt: skip
def test_every_spelling_of_a_number_is_a_float(tmp_path: Path, text: str, value: float) -> None:
    result = read(tmp_path, f"a: {text}")["a"]
    assert type(result) is float
    assert result == value


@pytest.mark.parametrize("text", ["12", "-3", "0"])
def test_integers_stay_integers(tmp_path: Path, text: str) -> None:
    result = read(tmp_path, f"a: {text}")["a"]
    assert type(result) is int
    assert result == int(text)


@pytest.mark.parametrize("text", ["'1e-3'", "1e", "e5", "v1.2", "1.2.3", "val_loss", ".", "08", "09", "0089"])
def test_text_that_is_not_a_number_stays_text(tmp_path: Path, text: str) -> None:
    # 08 may be a class name or a column; the number 8.0 would match no label
    assert read(tmp_path, f"a: {text}")["a"] == text.strip("'")


@settings(max_examples=60)
@given(value=st.floats(allow_nan=False))
def test_any_float_python_writes_is_read_as_that_float(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    text = repr(value).replace("inf", ".inf")
    assert read(tmp_path_factory.getbasetemp(), f"a: {text}")["a"] == value


TEXT = st.text("aBe012.-+_:#'\" {}[]&*!|>%@ñ數\n", max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@settings(max_examples=100)
@given(
    value=st.dictionaries(
        TEXT,
        st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)),
        max_size=4,
    )
)
def test_dumped_values_are_read_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump_yaml(value), encoding="utf-8")
    loaded = read_yaml(path)
    assert loaded == value
    assert list(loaded) == list(value)


@pytest.mark.parametrize("name", ["12e5", "1e-3", "4e12", "08", "1_000", "null", "yes", "2024-01-05", "1.5"])
def test_the_config_of_a_run_is_read_back_whatever_its_strings_look_like(tmp_path: Path, name: str) -> None:
    # the first digits of a commit are a valid run name, and 12e5 must not be read as the number 1200000
    run = Run.create(str(tmp_path), name, "digits")
    config = TrainConfig.from_dict({"run": {"dir": str(tmp_path), "name": name}, "data": {"classes": [name, "other"]}})
    run.write_config(config.to_dict())
    assert TrainConfig.from_dict(read_yaml(run.config)) == config


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("seed: 1\ndata:\n  val: 0.1\nseed: 2\n", "seed", 4),
        ("data:\n  val: 0.1\n  test: 0.2\n  val: 0.3\n", "val", 4),
        ("layers:\n- {a: 1}\n- {b: 1, b: 2}\n", "b", 3),
    ],
)
def test_a_key_written_twice_is_an_error_with_its_line(tmp_path: Path, text: str, key: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"config\.yaml.*line {line}: the key '{key}' appears twice"):
        read(tmp_path, text)


def test_the_same_key_in_two_groups_is_fine(tmp_path: Path) -> None:
    assert read(tmp_path, "a: {name: 1}\nb: {name: 2}\n") == {"a": {"name": 1}, "b": {"name": 2}}


def test_anchors_and_merged_keys_work(tmp_path: Path) -> None:
    text = "base: &base {lr: 1e-3, momentum: 0.9}\nused:\n  <<: *base\n  lr: 1e-2\nsame: *base\n"
    config = read(tmp_path, text)
    assert config["used"] == {"lr": 1e-2, "momentum": 0.9}
    assert config["same"] == {"lr": 1e-3, "momentum": 0.9}


def test_a_missing_file_is_an_error_that_says_how_to_create_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the config file '.*mnist\.yaml' does not exist.*experiment=mnist --cfg job"
    ):
        read_yaml(tmp_path / "mnist.yaml")


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("just words\n", "str"), ("3\n", "int")])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"config\.yaml': expected a mapping of keys to values, found a {kind}"):
        read(tmp_path, text)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null\n"])
def test_an_empty_file_is_an_empty_config(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == {}


@pytest.mark.parametrize(
    "text",
    ["a: [1, 2", "a:\n\t- b", "a: 'x", "a: !!python/object/apply:os.getcwd []", "? [1, 2]\n: 3", "a: 2024-13-45"],
)
def test_invalid_yaml_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read(tmp_path, text)


def test_invalid_utf8_and_a_directory_are_errors_that_name_the_path(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: \xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"config\.yaml' cannot be read"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
