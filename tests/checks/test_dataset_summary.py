"""`sightline inspect`: what it reports about a dataset, and whether the command that it prints trains on it."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.commands import Command, run_command
from helpers.images import noise, write_folders, write_image, write_table
from sightline.checks.dataset import looks_numeric, select_samples, summarise_dataset
from sightline.commands.hydra_config import compose_config
from sightline.data.records import DataInfo, Sample
from sightline.data.sources.listing import ListSource
from sightline.data.sources.open import detect_kind, open_source


def inspect(here: Command, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """The JSON that the command prints."""
    done = here("inspect", *arguments, "--json")
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


def codes(found: dict[str, Any]) -> list[str]:
    """The codes of its findings."""
    return [finding["code"] for finding in found["findings"]]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of 24 colour images of 96 x 80 pixels, without copies."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        for i in range(24):
            write_image(root / name / f"{i}.jpg", noise(80, 96, 3, seed=i + 1000 * (name == "dog")))
    return root


def test_a_folder_of_photographs_is_summarised_and_fine_tuned(here: Command, photographs: Path) -> None:
    done = here("inspect", photographs)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"data      {photographs}: one folder per class"
    assert lines[1].startswith("images    48; ")
    assert "classes   2: cat 24, dog 24" in lines
    assert "sizes     96 x 80 pixels" in lines
    assert "files     JPEG 48, colour" in lines
    assert "examined  48 of 48 images, decoded" in lines
    assert "nothing looks wrong" in lines
    command = lines[lines.index("next") + 1].strip()
    assert command == f"sightline train experiment=finetune data.root={photographs}"
    assert "fewer than 5,000" in done.stdout


def test_the_printed_command_is_a_valid_config(here: Command, tmp_path: Path, photographs: Path) -> None:
    """Also for a path with spaces, commas and quotes."""
    odd = tmp_path / "my photos, 'new' [1]"
    shutil.copytree(photographs, odd)
    line = here("inspect", odd).stdout.split("next\n")[1].splitlines()[0]
    words = shlex.split(line)
    assert words[:2] == ["sightline", "train"]
    assert compose_config(words[2:]).data.root == str(odd)


def test_small_images_are_trained_from_random_weights(here: Command, tmp_path: Path) -> None:
    write_folders(tmp_path / "digits", {"0": 30, "1": 30})
    (command,) = inspect(here, tmp_path / "digits")["next"]["commands"]
    assert command[:3] == ["sightline", "train", f"data.root={tmp_path / 'digits'}"]
    done = run_command(*command[1:], "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_small_images_of_several_sizes_and_colours_get_the_keys_they_need(here: Command, tmp_path: Path) -> None:
    root = tmp_path / "icons"
    for name in ("a", "b"):
        for i in range(30):
            channels = 3 if i % 3 else 0
            write_image(root / name / f"{i}.png", noise(20 + i % 2, 20, channels, seed=i + 50 * ord(name)))
    found = inspect(here, root)
    (command,) = found["next"]["commands"]
    assert "data.preprocess.channels=3" in command
    assert any(word.startswith("data.preprocess.size=[2") for word in command)
    assert "mixed-channels" in codes(found)
    done = run_command(*command[1:], "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_image_that_cannot_be_read_is_an_error_and_is_skipped_by_the_command(
    here: Command, photographs: Path
) -> None:
    content = (photographs / "cat" / "3.jpg").read_bytes()
    (photographs / "cat" / "3.jpg").write_bytes(content[: len(content) // 2])
    (photographs / "dog" / "4.jpg").write_bytes(b"")
    found = inspect(here, photographs, code=1)
    (finding,) = [finding for finding in found["findings"] if finding["severity"] == "error"]
    assert (finding["code"], len(finding["where"])) == ("unreadable-image", 2)
    assert any("3.jpg" in place for place in finding["where"])
    assert "data.on_bad=skip" in found["next"]["commands"][-1]
    assert sum(size["images"] for size in found["sizes"]) == 46


def test_copies_are_found_and_a_copy_with_another_label_is_a_conflict(here: Command, photographs: Path) -> None:
    shutil.copy(photographs / "cat" / "1.jpg", photographs / "cat" / "copy.jpg")
    shutil.copy(photographs / "cat" / "2.jpg", photographs / "dog" / "wrong.jpg")
    found = {finding["code"]: finding for finding in inspect(here, photographs)["findings"]}
    assert found["duplicate-image"]["message"].startswith("1 image with exact copies")
    (conflict,) = found["label-conflict"]["where"]
    assert "2.jpg" in conflict
    assert "(cat)" in conflict
    assert "(dog)" in conflict


def test_rare_classes_and_nearly_equal_names_are_findings(here: Command, tmp_path: Path) -> None:
    write_folders(tmp_path / "data", {"cat": 60, "dog": 4, "Dog": 25})
    found = {finding["code"]: finding for finding in inspect(here, tmp_path / "data")["findings"]}
    assert found["few-images"]["where"] == ["dog: 4"]
    assert "'cat' has 60" in found["imbalance"]["message"]
    assert "class_weights" in found["imbalance"]["fix"]
    assert found["similar-class-names"]["where"] == ["'Dog', 'dog'"]


def test_labels_that_are_quantities_are_predicted_as_numbers(here: Command, tmp_path: Path) -> None:
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "age"])
        for i in range(40):
            write_image(tmp_path / f"{i}.png", noise(8, 8, seed=i))
            table.writerow([f"{i}.png", f"{i / 2 + 1}"])
    found = inspect(here, tmp_path, "data.label_column=age")
    assert "numeric-labels" in codes(found)
    (command,) = found["next"]["commands"]
    assert {"data.target=number", "data.label_column=age"} <= set(command)
    done = run_command(*command[1:], "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("names", "images", "expected"),
    [
        (["0", "1", "2"], 100, False),
        ([str(i) for i in range(10)], 12, False),
        (["1.5", "2"], 100, True),
        ([str(i) for i in range(30)], 60, True),
        ([str(i) for i in range(30)], 3000, False),
        (["1", "two"], 4, False),
        (["0", "1", "nan"], 4, False),
        ([], 0, False),
    ],
)
def test_labels_are_quantities_when_they_have_fractions_or_hardly_repeat(
    names: list[str], images: int, expected: bool
) -> None:
    assert looks_numeric(names, images) is expected


def test_splits_that_the_data_has_are_counted(here: Command, tmp_path: Path) -> None:
    for split, count in (("train", 30), ("val", 5)):
        write_folders(tmp_path / "data" / split, {"a": count, "b": count})
    found = inspect(here, tmp_path / "data")
    assert found["splits"] == {"train": 60, "val": 10}
    assert found["classes"] == {"a": 30, "b": 30}


def test_archives_and_arrays_are_inspected(here: Command, tmp_path: Path, photographs: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photographs.rglob("*.jpg")):
            archive.write(file, file.relative_to(photographs))
    found = inspect(here, tmp_path / "photos.zip")
    assert (found["layout"], found["images"], found["formats"]) == ("folder", 48, {"JPEG": 48})
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(50) % 2)
    found = inspect(here, tmp_path / "data.npz")
    assert (found["layout"], found["formats"]) == ("npz", {"pixels": 50})
    assert found["sizes"] == [{"height": 28, "width": 28, "images": 50}]


def test_a_large_dataset_is_summarised_by_its_headers(photographs: Path) -> None:
    source = open_source("folder", photographs, val=0, test=0)
    content = (photographs / "cat" / "3.jpg").read_bytes()
    (photographs / "cat" / "3.jpg").write_bytes(content[: len(content) // 2])  # its header is intact
    summary = summarise_dataset(source, select_samples(source, max_decoded_bytes=1000, max_headers=20))
    assert (summary.decoded, summary.examined, summary.images) == (False, 20, 48)
    assert [finding.code for finding in summary.findings] == []
    assert sum(summary.sizes.values()) == 20


@pytest.mark.parametrize("decode", [True, False])
def test_the_size_is_that_of_the_upright_image(tmp_path: Path, decode: bool) -> None:
    """As training sees it: an orientation of 6 exchanges height and width."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a.jpg", exif=exif)
    sample = Sample("a", tmp_path / "a.jpg", 0)
    source = ListSource(DataInfo("one", ("a", "b")), {"train": [sample]})
    summary = summarise_dataset(source, select_samples(source, max_decoded_bytes=1 << 20 if decode else 0))
    assert summary.decoded is decode
    assert str(summary.median_size) == "20 x 30"


def test_a_summary_changes_no_file_and_needs_no_torch(tmp_path: Path, photographs: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in sorted(tmp_path.rglob("*"))}
    code = (
        "import sys\nfrom sightline.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(photographs)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert {file: file.stat().st_mtime_ns for file in sorted(tmp_path.rglob("*"))} == before


@pytest.mark.parametrize(("name", "message"), [("nowhere", "does not exist"), ("empty", "No class folders in")])
def test_data_that_cannot_be_read_is_an_error(here: Command, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    done = here("inspect", tmp_path / name)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_kind_of_a_source_is_detected(tmp_path: Path, photographs: Path) -> None:
    assert detect_kind(photographs) == "folder"
    (photographs / "labels.csv").write_text("file,label\ncat/1.jpg,cat\ndog/1.jpg,dog\n")
    assert detect_kind(photographs) == "csv"
    assert detect_kind(photographs / "labels.csv") == "csv"


def test_regression_data_with_splits_is_read_as_numbers(here: Command, tmp_path: Path) -> None:
    """A validation label that is not in train is no class, but it is a number."""
    for split in ("train", "val"):
        rows = []
        for i in range(30):
            write_image(tmp_path / "data" / split / f"{i}.png", noise(8, 8, seed=i + 100 * (split == "val")))
            rows.append(f"{i}.png,{i * 1.25 + (split == 'val') / 8}")
        write_table(tmp_path / "data" / split / "labels.csv", "file,target", rows)
    found = inspect(here, tmp_path / "data")
    assert (found["layout"], found["classes"], found["splits"]) == ("csv", {}, {"train": 30, "val": 30})
    (command,) = found["next"]["commands"]
    assert "data.target=number" in command
    done = run_command(*command[1:], "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_arrays_of_the_size_of_cifar_get_a_command_that_runs(here: Command, tmp_path: Path) -> None:
    """The preset of CIFAR-10 reads folders; the command names the kind of this source."""
    np.savez(tmp_path / "data.npz", images=noise(60 * 32, 32, 3).reshape(60, 32, 32, 3), labels=np.arange(60) % 2)
    (command,) = inspect(here, tmp_path / "data.npz")["next"]["commands"]
    assert {"experiment=cifar10", "data.source=npz", "data.val=0.1"} <= set(command)
    config = compose_config(command[2:])
    assert (config.data.source, config.data.val) == ("npz", 0.1)


def test_a_copy_in_another_split_is_a_leak(here: Command, tmp_path: Path) -> None:
    for split, count in (("train", 30), ("test", 5)):
        for name in ("a", "b"):
            for i in range(count):
                seed = i + 100 * (name == "b") + 1000 * (split == "test")
                write_image(tmp_path / "data" / split / name / f"{i}.png", noise(8, 8, seed=seed))
    shutil.copy(tmp_path / "data/train/a/3.png", tmp_path / "data/test/a/9.png")
    found = {finding["code"]: finding for finding in inspect(here, tmp_path / "data")["findings"]}
    (leak,) = found["split-leak"]["where"]
    assert "(train)" in leak
    assert "(test)" in leak
    assert "duplicate-image" not in found


def test_names_that_differ_in_a_sign_or_a_digit_are_different(here: Command, tmp_path: Path) -> None:
    write_folders(tmp_path / "data", {"C": 25, "C++": 25, "-14": 25, "14": 25, "1.5 x": 25, "15 x": 25})
    assert "similar-class-names" not in codes(inspect(here, tmp_path / "data"))


def test_nothing_is_recommended_for_images_that_cannot_be_read(here: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(b"not an image")
    done = here("inspect", tmp_path / "data")
    assert done.returncode == 1
    assert "sightline train" not in done.stdout
    assert "colour" not in done.stdout


def test_a_tiff_that_is_damaged_after_its_first_page_is_no_traceback(here: Command, photographs: Path) -> None:
    pages = [Image.fromarray(noise(80, 96, 3, seed=i)) for i in (1, 2)]
    pages[0].save(photographs / "cat" / "pages.tiff", save_all=True, append_images=pages[1:])
    content = bytearray((photographs / "cat" / "pages.tiff").read_bytes())
    offset = int.from_bytes(content[4:8], "little")
    entries = int.from_bytes(content[offset : offset + 2], "little")
    place = offset + 2 + 12 * entries  # where the next page is
    content[place : place + 4] = (len(content) - 3).to_bytes(4, "little")
    (photographs / "cat" / "pages.tiff").write_bytes(content)
    with pytest.raises(Exception), Image.open(photographs / "cat" / "pages.tiff") as opened:  # noqa: B017, PT011
        opened.n_frames  # noqa: B018 Pillow raises one of many exceptions
    found = inspect(here, photographs)
    assert (found["images"], codes(found)) == (49, [])


def test_keys_that_say_how_data_is_read_are_those_of_train(here: Command, tmp_path: Path) -> None:
    rows = [f"{i}.png,{'ab'[i % 2]},{i % 3}" for i in range(30)]
    for i in range(30):
        write_image(tmp_path / f"{i}.png", noise(8, 8, seed=i))
    write_table(tmp_path / "labels.csv", "photo,kind,group", rows)
    assert "data.image_column" in here("inspect", "labels.csv").stderr
    found = inspect(here, "labels.csv", "data.image_column=photo", "data.label_column=kind")
    assert found["classes"] == {"a": 15, "b": 15}
    assert {"data.image_column=photo", "data.label_column=kind"} <= set(found["next"]["commands"][0])
    done = here("inspect", "labels.csv", "data.batch_size=3")
    assert done.returncode == 2
    assert "data.batch_size" in done.stderr


@pytest.mark.parametrize("source", ["digits", "torchvision"])
def test_a_source_without_files_is_an_error(here: Command, photographs: Path, source: str) -> None:
    done = here("inspect", photographs, f"data.source={source}")
    assert done.returncode == 2
    assert done.stderr.startswith("sightline: data.")
    assert f"data.source={source}" in done.stderr
