"""`sightline reproduce`: a finished run trained again from its record is bitwise identical, or the first difference and
its likely cause are reported. Also the manifest of a run's images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

import sightline
from helpers.commands import Command
from helpers.images import noise, write_image
from sightline import cli
from sightline.core.errors import ArtifactError
from sightline.core.files import sha256
from sightline.data.cache.pack import pack_splits
from sightline.data.sources.open import open_source
from sightline.report.compare import open_record
from sightline.report.reproduce import Certificate, certify, check_reproducible, data_cause, pinned_settings
from sightline.runs.images import IMAGES, ImageRecord, compare_images, list_images, read_images, write_images

LAYERS = [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 2}]


def write_image_folders(root: Path) -> Path:
    """Writes images of two classes into folders for the splits, all different."""
    for number, (split, count) in enumerate({"train": 20, "val": 6, "test": 6}.items()):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(root / split / name / f"{i}.png", noise(8, 8, seed=number * 1000 + label * 100 + i))
    return root


def trained(folder: Path, **options: Any) -> Path:
    """A finished run on these images, with a log point every two steps."""
    config = {
        "data": {"root": str(write_image_folders(folder / "data")), "batch_size": 8},
        "module": {"network": {"layers": LAYERS}},
        "trainer": {"max_epochs": 2, "log_every": 2, "progress": False},
        "run": {"dir": str(folder / "runs"), "name": "first"},
    }
    run = sightline.fit(config, **options).run
    assert run is not None
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its data beside it, for tests that change neither of them."""
    return trained(tmp_path_factory.mktemp("made"))


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of it, for the run and for the run trained again."""
    return Path(shutil.copytree(made, tmp_path / "a")), Path(shutil.copytree(made, tmp_path / "b"))


def alter(path: Path) -> None:
    """Changes one pixel by one level."""
    pixels = np.asarray(Pillow.open(path)).copy()
    pixels[3, 4] ^= 1
    Pillow.fromarray(pixels).save(path)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_log(run: Path, number: int, **values: Any) -> dict[str, Any]:
    """Changes one line of a log and returns the line before."""
    lines = (run / "log.jsonl").read_text().splitlines()
    before: dict[str, Any] = json.loads(lines[number])
    lines[number] = json.dumps({**before, **values})
    (run / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return before


def file_states(run: Path) -> dict[str, tuple[str, int]]:
    """The digest and the modification time of every file of a run."""
    return {
        path.relative_to(run).as_posix(): (sha256(path) if path.is_file() else "", path.stat().st_mtime_ns)
        for path in sorted([run, *run.rglob("*")])
    }


def reproduce(*arguments: str | Path, code: int, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Runs the command in this process: (standard output, standard error)."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["reproduce", *map(str, arguments)])
    output = capsys.readouterr()
    assert exit_info.value.code == code, output.err + output.out
    return output.out, output.err


def certified(a: Path, b: Path) -> Certificate:
    run, again = open_record(a), open_record(b)
    return certify(run, again, data_cause(run, again))


# ---- the command ----


@pytest.mark.rows("X07")
def test_an_unchanged_run_is_identical_and_is_not_changed(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_states(made)
    out, _ = reproduce(made, "--json", "--dir", tmp_path / "again", code=0, capsys=capsys)
    certificate = json.loads(out)
    assert certificate["identical"]
    assert (certificate["differ"], certificate["first_difference"], certificate["causes"]) == ({}, None, [])
    again = Path(certificate["again"])
    assert sha256(again / "predictions" / "test.csv") == sha256(made / "predictions" / "test.csv")
    assert sha256(again / IMAGES) == sha256(made / IMAGES)
    assert file_states(made) == before
    with pytest.raises(SystemExit):
        cli.main(["diff", str(made), str(again)])
    sections = dict(part.split("\n", 1) for part in capsys.readouterr().out.strip().split("\n\n")[1:])
    assert [sections[name] for name in ("data", "environment", "training", "metrics")] == ["  same"] * 4


@pytest.mark.rows("X07")
def test_an_image_with_one_changed_pixel_is_named(sightline: Command, tmp_path: Path) -> None:
    run = trained(tmp_path)
    images = read_images(run / IMAGES)
    assert images is not None
    name = next(image.id for image in images if image.split == "train" and image.id.endswith("cat/7.png"))
    alter(tmp_path / "data" / "train" / "cat" / "7.png")
    done = sightline("reproduce", run)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    cause = f"images changed: {name} (train)"
    assert cause in done.stderr.partition("training continues")[0]
    lines = done.stdout.splitlines()
    assert lines[0] == f"not identical: training '{run}' again gave another result"
    assert lines[1].startswith("first difference: step 2 (epoch 0): loss ")
    assert f"likeliest cause: {cause}" in lines
    assert list(tmp_path.glob("**/*-again")) == []


def test_an_identical_result_is_summarised_and_deleted(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out, _ = reproduce(made, code=0, capsys=capsys)
    lines = out.splitlines()
    assert lines[0] == f"identical: training '{made}' again gave the same bits"
    assert [line.split()[0] for line in lines[1:]] == ["log", "weights", "metrics", "predictions"]
    assert "2 tensors" in lines[2]
    assert list(tmp_path.iterdir()) == []
    out, _ = reproduce(made, "--keep", code=0, capsys=capsys)
    directory = Path(out.splitlines()[-1].removeprefix("kept: "))
    assert open_record(directory).state == "finished"


def test_the_first_difference_to_the_log_is_reported(
    tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "runs" / "first"))
    before = edit_log(run, 3, loss=9.25, seconds=1e9, images_per_second=1.0)
    out, _ = reproduce(run, code=1, capsys=capsys)
    lines = out.splitlines()
    first = f"step {before['step']} (epoch {before['epoch']}): loss {before['loss']:.4g} here, 9.25 in the run; "
    assert lines[1].startswith(f"first difference: {first}the same up to step 5")
    assert "weights      the same" in out
    assert lines[-1].startswith("likeliest cause: a kernel that is not deterministic")


def test_missing_data_is_named_and_a_new_location_can_be_passed(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "first"))
    data, missing = made.parents[1] / "data", tmp_path / "missing"
    config = (run / "config.yaml").read_text()
    assert str(data) in config
    (run / "config.yaml").write_text(config.replace(str(data), str(missing)))
    out, err = reproduce(run, code=2, capsys=capsys)
    assert out == ""
    assert f"data.root: '{missing}' does not exist" in err
    out, _ = reproduce(run, f"data.root={data}", code=0, capsys=capsys)
    assert out.startswith("identical")


def test_directories_and_keys_that_reproduce_refuses(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = reproduce(made, "--dir", made / "exported", code=2, capsys=capsys)
    assert "is inside the run, which is only read" in err
    (tmp_path / "first-again").mkdir()
    _, err = reproduce(made, "--dir", tmp_path, code=2, capsys=capsys)
    assert f"--dir: '{tmp_path / 'first-again'}' already exists" in err
    _, err = reproduce(made, "trainer.max_epochs=3", code=2, capsys=capsys)
    assert "trainer.max_epochs: reproduce cannot change this key" in err


# ---- what is refused ----


def unfinished(run: Path) -> None:
    shutil.rmtree(run / "exported")


def passed_in_python(run: Path) -> None:
    edit(run / "environment.json", lambda content: content.update(given=["model", "loss"]))


def without_predictions(run: Path) -> None:
    (run / "predictions" / "test.csv").unlink()


def without_log(run: Path) -> None:
    (run / "log.jsonl").unlink()


def other_weights(run: Path) -> None:
    path = run / "exported" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unfinished, r"is not finished \(2 of 2 epochs\).*sightline resume"),
        (passed_in_python, r"created with objects passed in Python: model, loss"),
        (without_predictions, r"test\.csv' is missing, so there is nothing to compare with"),
        (without_log, r"log\.jsonl' is missing, so there is nothing to compare with"),
        (other_weights, r"model\.safetensors' is not the file the model was exported with"),
    ],
)
def test_a_run_that_cannot_be_repeated_is_refused(
    spoil: Callable[[Path], None], message: str, pair: tuple[Path, Path]
) -> None:
    run, _ = pair
    check_reproducible(open_record(run))
    spoil(run)
    with pytest.raises(ArtifactError, match=message):
        check_reproducible(open_record(run))


# ---- what differs, and why ----


def test_the_first_difference_is_the_earliest_part_that_differs(pair: tuple[Path, Path]) -> None:
    a, b = pair
    assert certified(a, b).identical
    table = b / "predictions" / "val.csv"
    rows = table.read_text().splitlines()
    cells = rows[2].split(",")
    rows[2] = ",".join([*cells[:3], "0.25", *cells[4:]])
    table.write_text("\n".join([*rows, ""]))
    certificate = certified(a, b)
    assert not certificate.identical
    assert set(certificate.differ) == {"predictions"}
    assert (
        certificate.differ["predictions"] == f"val.csv, row 2 ({cells[0]}): confidence 0.25 here, {cells[3]} in the run"
    )
    path = b / "exported" / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 1e-6
    save_file(tensors, path)
    certificate = certified(a, b)
    assert certificate.first == f"after step 10, weights: 1 of 2 tensors: {name}"
    before = edit_log(b, -1, val_loss=0.5)
    assert str(certified(a, b).first).startswith(
        f"step 10 (epoch 1): val_loss 0.5 here, {before['val_loss']:.4g} in the"
    )


def test_a_log_with_other_quantities_or_points_is_not_the_same(pair: tuple[Path, Path]) -> None:
    a, b = pair
    edit_log(b, 1, momentum=0.9)
    assert "momentum 0.9 here, none in the run" in certified(a, b).differ["log"]
    shutil.copy(a / "log.jsonl", b / "log.jsonl")
    lines = (b / "log.jsonl").read_text().splitlines(keepends=True)
    (b / "log.jsonl").write_text("".join(lines[:-1]))
    assert "0 log points are only here and 1 only in the run" in certified(a, b).differ["log"]


DIFF = "diff --git a/{0} b/{0}\n--- a/{0}\n+++ b/{0}\n@@ -1 +1 @@\n-a\n+{1}\n"


@pytest.mark.parametrize(
    ("file", "change", "kind", "description"),
    [
        ("environment", {"packages": {"numpy": "0.1", "zzz": "1"}}, "versions", "numpy 0.1 -> "),
        ("environment", {"python": "3.0.1"}, "versions", "Python 3.0.1 -> "),
        ("environment", {"torch": {"cpu_capability": "MMX"}}, "cpu", "another CPU capability, MMX -> "),
        ("environment", {"machine_words": "64 cores Z80, 1 GiB"}, "cpu", "another processor, Z80 -> "),
        ("environment", {"torch": {"threads": 64}}, "threads", "another number of threads, 64 -> "),
        ("environment", {"torch": {"cuda_devices": ["H100"]}}, "device", "another device, H100 -> none"),
        ("environment", {"git": {"diff": DIFF.format("net.py", "b")}}, "code", "has changed: net.py"),
        ("environment", {"git": {"commit": "0123456789abcdef"}}, "code", "commit 0123456789ab -> fedcba987654"),
        (
            "environment",
            {"drift": [{"changed": {"trainer.max_epochs": [1, 2]}}]},
            "resumed",
            "trainer.max_epochs 1 -> 2",
        ),
    ],
)
def test_the_likeliest_cause(
    file: str, change: dict[str, Any], kind: str, description: str, pair: tuple[Path, Path]
) -> None:
    a, b = pair
    git = {"commit": "fedcba9876543210", "diff": DIFF.format("README.md", "b"), "diff_cut": False, "untracked": []}
    for run in pair:
        edit(run / "environment.json", lambda content: content.update(git=git, machine_words="2 cores 6502, 1 GiB"))
    assert certified(a, b).causes == ()

    def merge(content: dict[str, Any]) -> None:
        for key, value in change.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value

    edit(a / f"{file}.json", merge)
    (cause,) = certified(a, b).causes
    assert cause.kind == kind
    assert description in cause.description
    assert "zzz" not in cause.description


def test_causes_are_ordered_by_likelihood(pair: tuple[Path, Path]) -> None:
    a, b = pair

    def change(content: dict[str, Any]) -> None:
        content["python"], content["packages"]["torch"], content["packages"]["pillow"] = "3.0", "1.0", "1.0"
        content["torch"]["threads"] = 7

    edit(a / "environment.json", change)
    edit(a / "data.json", lambda content: content["fingerprint"].update(val="0" * 64))
    (a / IMAGES).unlink()  # as an older version wrote it
    causes = certified(a, b).causes
    assert [cause.kind for cause in causes] == ["data", "versions", "threads"]
    older = "the run is from an earlier version that did not record single images"
    assert causes[0].description == f"the val split of the data; {older}"
    assert [part.split()[0] for part in causes[1].description.split(", ")] == ["torch", "pillow", "Python"]


def test_threads_and_device_are_the_same_as_in_the_run(pair: tuple[Path, Path]) -> None:
    a, _ = pair
    assert pinned_settings(open_record(a))["threads"] == 1
    edit(a / "environment.json", lambda content: content["torch"].update(threads=3, cuda_devices=["H100"]))
    assert pinned_settings(open_record(a)) == {"threads": 3}


# ---- the images of a run ----


def rows(**names: str) -> list[ImageRecord]:
    """`rows(a="train cat 1")`: records of images, each with a name, split, label and pixels."""
    return [
        ImageRecord(*(text.split()[0], name, text.split()[1]), "9", text.split()[2], "") for name, text in names.items()
    ]


def test_changes_of_images_are_listed_by_name() -> None:
    before = rows(a="train cat 1", b="train cat 2", c="val dog 3", d="train dog 4", e="train dog 5", f="train dog 6")
    after = rows(a="train cat 9", b="train dog 2", c="train dog 3", new="train dog 5", g="val cat 7", f="train dog 6")
    after[-1] = after[-1]._replace(bytes="10")
    changes = compare_images(before, after)
    assert changes.to_dict() == {
        "changed": ["a (train)"],
        "relabelled": ["b (train, cat -> dog)"],
        "added": ["g (val)"],
        "removed": ["d (train)"],
        "moved": ["c (val -> train)"],
        "rewritten": ["f (train)"],
    }
    assert changes.words()[:2] == ["changed: a (train)", "relabelled: b (train, cat -> dog)"]
    many = compare_images([], rows(**{f"p{i}": "train cat 1" for i in range(20)}))
    assert many.words() == ["added: p0 (train), p1 (train), p2 (train), p3 (train), p4 (train), … (15 more)"]


def test_a_changed_image_that_moved_to_another_split_is_still_found() -> None:
    changes = compare_images(rows(a="train cat 1"), rows(a="val cat 2"))
    assert (changes.changed, changes.added, changes.removed) == (("a (train -> val)",), (), ())


def test_a_change_that_resizing_hides_counts_as_changed() -> None:
    before = ImageRecord("train", "a.png", "cat", "100", "f" * 32, "00000001")
    assert compare_images([before], [before._replace(content="00000002")]).changed == ("a.png (train)",)
    assert not compare_images([before], [before._replace(content="")])  # unknown content


names = st.text(max_size=6)
images = st.lists(
    st.builds(
        ImageRecord,
        st.sampled_from(["train", "val"]),
        names,
        names,
        st.just("7"),
        st.sampled_from(["", "aa", "bb"]),
        st.just(""),
    ),
    max_size=8,
)


@settings(max_examples=60)
@given(images, st.randoms())
def test_the_order_of_images_does_not_matter(records: list[ImageRecord], random: Any) -> None:
    records = list({(image.split, image.id): image for image in records}.values())
    shuffled = list(records)
    random.shuffle(shuffled)
    assert not compare_images(records, shuffled)


def packed(root: Path) -> Any:
    source = open_source("folder", root=str(root))
    return pack_splits(source, {"size": 8})[0]


def test_the_image_manifest_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    data = packed(write_image_folders(tmp_path / "data"))
    for name in ("a", "b"):
        write_images(tmp_path / name, data, {data["train"].ids[0]: 77})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    records = read_images(tmp_path / "a")
    assert records == list(list_images(data, {data["train"].ids[0]: 77}))
    assert records is not None
    assert len({image.pixels for image in records}) == len(records) == 64
    assert (records[0].bytes, records[1].bytes) == ("77", "")
    assert {image.label for image in records} == {"cat", "dog"}
    assert read_images(tmp_path / "none") is None


def test_image_names_with_any_characters_are_read_back(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i, name in enumerate(['a,"b".png', "two\nlines.png", " é ü.png"]):
        write_image(root / "x" / name, noise(4, 4, seed=i))
        write_image(root / "y" / name, noise(4, 4, seed=i + 10))
    data = packed(root)
    data["train"] = replace(data["train"], ids=("\udcff.png", *data["train"].ids[1:]))  # from another source
    write_images(tmp_path / IMAGES, data)
    records = read_images(tmp_path / IMAGES)
    assert records is not None
    assert [image.id for image in records] == [name for split in data.values() for name in split.ids]


@pytest.mark.parametrize("content", [b"", b"no gzip", None, b"\x1f\x8b\x08\0"])
def test_a_damaged_image_manifest_is_named(content: bytes | None, pair: tuple[Path, Path]) -> None:
    a, b = pair
    complete = (a / IMAGES).read_bytes()
    (a / IMAGES).write_bytes(complete[: len(complete) // 2] if content is None else content)
    with pytest.raises(ArtifactError, match=r"images\.csv\.gz' is damaged or cannot be read"):
        certified(a, b)


@pytest.mark.rows("X01")
def test_a_resumed_run_names_the_image_that_has_changed(tmp_path: Path) -> None:
    run = trained(tmp_path)
    alter(tmp_path / "data" / "train" / "dog" / "3.png")
    with pytest.raises(ArtifactError, match=r"other images or labels\. Images changed: \S*dog/3\.png \(train\)"):
        sightline.resume(run)
