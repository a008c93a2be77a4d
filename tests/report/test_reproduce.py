"""A finished run trained again from its own record: identical to the bit, or where it parts and why; and what a run
knows of its single pictures."""

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


def pictures(root: Path) -> Path:
    """Two classes, with splits of their own; no two pictures alike."""
    for number, (split, count) in enumerate({"train": 20, "val": 6, "test": 6}.items()):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(root / split / name / f"{i}.png", noise(8, 8, seed=number * 1000 + label * 100 + i))
    return root


def trained(folder: Path, **given: Any) -> Path:
    """A finished run on such pictures, with a log point every two steps."""
    config = {
        "data": {"root": str(pictures(folder / "data")), "batch_size": 8},
        "module": {"network": {"layers": LAYERS}},
        "trainer": {"max_epochs": 2, "log_every": 2, "progress": False},
        "run": {"dir": str(folder / "runs"), "name": "first"},
    }
    run = sightline.fit(config, **given).run
    assert run is not None
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its data beside it, for tests that change neither."""
    return trained(tmp_path_factory.mktemp("made"))


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of it: the run, and what it would be when trained again."""
    return Path(shutil.copytree(made, tmp_path / "a")), Path(shutil.copytree(made, tmp_path / "b"))


def alter(picture: Path) -> None:
    """One pixel, by one level."""
    pixels = np.asarray(Pillow.open(picture)).copy()
    pixels[3, 4] ^= 1
    Pillow.fromarray(pixels).save(picture)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_log(run: Path, number: int, **values: Any) -> dict[str, Any]:
    """Changes one line of a log; the line as it was."""
    lines = (run / "log.jsonl").read_text().splitlines()
    was: dict[str, Any] = json.loads(lines[number])
    lines[number] = json.dumps({**was, **values})
    (run / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return was


def held(run: Path) -> dict[str, tuple[str, int]]:
    """Every file of a run with its content and when it was changed."""
    return {
        path.relative_to(run).as_posix(): (sha256(path) if path.is_file() else "", path.stat().st_mtime_ns)
        for path in sorted([run, *run.rglob("*")])
    }


def reproduce(*words: str | Path, code: int, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The command in this process: what it said on standard output and on standard error."""
    with pytest.raises(SystemExit) as left:
        cli.main(["reproduce", *map(str, words)])
    told = capsys.readouterr()
    assert left.value.code == code, told.err + told.out
    return told.out, told.err


def certified(a: Path, b: Path) -> Certificate:
    run, again = open_record(a), open_record(b)
    return certify(run, again, data_cause(run, again))


# ---- the command ----


@pytest.mark.rows("X07")
def test_an_untouched_run_is_identical_and_stays_untouched(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = held(made)
    out, _ = reproduce(made, "--json", "--dir", tmp_path / "again", code=0, capsys=capsys)
    found = json.loads(out)
    assert found["identical"]
    assert (found["differ"], found["first_difference"], found["causes"]) == ({}, None, [])
    again = Path(found["again"])
    assert sha256(again / "predictions" / "test.csv") == sha256(made / "predictions" / "test.csv")
    assert sha256(again / IMAGES) == sha256(made / IMAGES)
    assert held(made) == before
    with pytest.raises(SystemExit):
        cli.main(["diff", str(made), str(again)])
    sections = dict(part.split("\n", 1) for part in capsys.readouterr().out.strip().split("\n\n")[1:])
    assert [sections[name] for name in ("data", "environment", "training", "metrics")] == ["  same"] * 4


@pytest.mark.rows("X07")
def test_one_altered_pixel_names_the_picture(sightline: Command, tmp_path: Path) -> None:
    run = trained(tmp_path)
    images = read_images(run / IMAGES)
    assert images is not None
    name = next(image.id for image in images if image.split == "train" and image.id.endswith("cat/7.png"))
    alter(tmp_path / "data" / "train" / "cat" / "7.png")
    done = sightline("reproduce", run)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    told = f"the pictures, changed: {name} (train)"
    assert told in done.stderr.partition("training all the same")[0]
    lines = done.stdout.splitlines()
    assert lines[0] == f"not identical: '{run}', trained again from its record, is not the same"
    assert lines[1].startswith("first difference: step 2 (epoch 0): loss ")
    assert f"likeliest cause: {told}" in lines
    assert list(tmp_path.glob("**/*-again")) == []


def test_what_is_identical_is_told_in_lines_and_leaves_nothing(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out, _ = reproduce(made, code=0, capsys=capsys)
    lines = out.splitlines()
    assert lines[0] == f"identical: '{made}', trained again from its record, is the same to the bit"
    assert [line.split()[0] for line in lines[1:]] == ["log", "weights", "metrics", "predictions"]
    assert "2 tensors" in lines[2]
    assert list(tmp_path.iterdir()) == []
    out, _ = reproduce(made, "--keep", code=0, capsys=capsys)
    kept = Path(out.splitlines()[-1].removeprefix("kept: "))
    assert open_record(kept).state == "finished"


def test_a_run_that_parts_from_its_log_says_where(
    tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "runs" / "first"))
    was = edit_log(run, 3, loss=9.25, seconds=1e9, images_per_second=1.0)
    out, _ = reproduce(run, code=1, capsys=capsys)
    lines = out.splitlines()
    first = f"step {was['step']} (epoch {was['epoch']}): loss {was['loss']:.4g} here, 9.25 in the run; "
    assert lines[1].startswith(f"first difference: {first}the same up to step 5")
    assert "weights      the same" in out
    assert lines[-1].startswith("likeliest cause: a kernel that is not deterministic")


def test_data_that_is_gone_is_named_and_data_that_has_moved_is_taken(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "first"))
    data, gone = made.parents[1] / "data", tmp_path / "gone"
    config = (run / "config.yaml").read_text()
    assert str(data) in config
    (run / "config.yaml").write_text(config.replace(str(data), str(gone)))
    out, err = reproduce(run, code=2, capsys=capsys)
    assert out == ""
    assert f"data.root: '{gone}' does not exist" in err
    out, _ = reproduce(run, f"data.root={data}", code=0, capsys=capsys)
    assert out.startswith("identical")


def test_where_it_may_not_be_trained_again(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = reproduce(made, "--dir", made / "exported", code=2, capsys=capsys)
    assert "is in the run itself, which is not touched" in err
    (tmp_path / "first-again").mkdir()
    _, err = reproduce(made, "--dir", tmp_path, code=2, capsys=capsys)
    assert f"--dir: '{tmp_path / 'first-again'}' exists" in err
    _, err = reproduce(made, "trainer.max_epochs=3", code=2, capsys=capsys)
    assert "not 'trainer.max_epochs'" in err


# ---- what is refused ----


def unfinished(run: Path) -> None:
    shutil.rmtree(run / "exported")


def handed_over(run: Path) -> None:
    edit(run / "environment.json", lambda content: content.update(given=["model", "loss"]))


def without_predictions(run: Path) -> None:
    (run / "predictions" / "test.csv").unlink()


def without_log(run: Path) -> None:
    (run / "log.jsonl").unlink()


def other_weights(run: Path) -> None:
    path = run / "exported" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (unfinished, r"is not finished \(2 of 2 epochs\).*sightline resume"),
        (handed_over, r"made with parts handed over in Python: model, loss"),
        (without_predictions, r"test\.csv' is missing, so there is nothing to compare with"),
        (without_log, r"log\.jsonl' is missing, so there is nothing to compare with"),
        (other_weights, r"model\.safetensors' is not the file the model was exported with"),
    ],
)
def test_a_run_without_a_record_to_repeat_is_refused(
    spoil: Callable[[Path], None], told: str, pair: tuple[Path, Path]
) -> None:
    run, _ = pair
    check_reproducible(open_record(run))
    spoil(run)
    with pytest.raises(ArtifactError, match=told):
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
    found = certified(a, b)
    assert not found.identical
    assert set(found.differ) == {"predictions"}
    assert found.differ["predictions"] == f"val.csv, row 2 ({cells[0]}): confidence 0.25 here, {cells[3]} in the run"
    path = b / "exported" / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 1e-6
    save_file(tensors, path)
    found = certified(a, b)
    assert found.first == f"after step 10, weights: 1 of 2 tensors: {name}"
    was = edit_log(b, -1, val_loss=0.5)
    assert str(certified(a, b).first).startswith(f"step 10 (epoch 1): val_loss 0.5 here, {was['val_loss']:.4g} in the")


def test_a_log_with_more_or_other_quantities_is_not_the_same(pair: tuple[Path, Path]) -> None:
    a, b = pair
    edit_log(b, 1, momentum=0.9)
    assert "momentum 0.9 here, none in the run" in certified(a, b).differ["log"]
    shutil.copy(a / "log.jsonl", b / "log.jsonl")
    lines = (b / "log.jsonl").read_text().splitlines(keepends=True)
    (b / "log.jsonl").write_text("".join(lines[:-1]))
    assert "0 are here alone and 1 in the run alone" in certified(a, b).differ["log"]


DIFF = "diff --git a/{0} b/{0}\n--- a/{0}\n+++ b/{0}\n@@ -1 +1 @@\n-a\n+{1}\n"


@pytest.mark.parametrize(
    ("file", "change", "kind", "told"),
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
def test_the_likeliest_cause(file: str, change: dict[str, Any], kind: str, told: str, pair: tuple[Path, Path]) -> None:
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
    assert told in cause.description
    assert "zzz" not in cause.description


def test_causes_come_in_the_order_of_their_likelihood(pair: tuple[Path, Path]) -> None:
    a, b = pair

    def change(content: dict[str, Any]) -> None:
        content["python"], content["packages"]["torch"], content["packages"]["pillow"] = "3.0", "1.0", "1.0"
        content["torch"]["threads"] = 7

    edit(a / "environment.json", change)
    edit(a / "data.json", lambda content: content["fingerprint"].update(val="0" * 64))
    (a / IMAGES).unlink()  # as an older version left it
    causes = certified(a, b).causes
    assert [cause.kind for cause in causes] == ["data", "versions", "threads"]
    assert causes[0].description == "the val split of the data; the run is older than its record of single pictures"
    assert [words.split()[0] for words in causes[1].description.split(", ")] == ["torch", "pillow", "Python"]


def test_threads_and_device_are_those_of_the_run(pair: tuple[Path, Path]) -> None:
    a, _ = pair
    assert pinned_settings(open_record(a))["threads"] == 1
    edit(a / "environment.json", lambda content: content["torch"].update(threads=3, cuda_devices=["H100"]))
    assert pinned_settings(open_record(a)) == {"threads": 3}


# ---- the pictures of a run ----


def rows(**names: str) -> list[ImageRecord]:
    """`rows(a="train cat 1")`: a picture of a name, with its split, label and what it shows."""
    return [
        ImageRecord(*(text.split()[0], name, text.split()[1]), "9", text.split()[2], "") for name, text in names.items()
    ]


def test_what_became_of_pictures_is_told_by_name() -> None:
    before = rows(a="train cat 1", b="train cat 2", c="val dog 3", d="train dog 4", e="train dog 5", f="train dog 6")
    after = rows(a="train cat 9", b="train dog 2", c="train dog 3", new="train dog 5", g="val cat 7", f="train dog 6")
    after[-1] = after[-1]._replace(bytes="10")
    found = compare_images(before, after)
    assert found.to_dict() == {
        "changed": ["a (train)"],
        "relabelled": ["b (train, cat -> dog)"],
        "added": ["g (val)"],
        "removed": ["d (train)"],
        "moved": ["c (val -> train)"],
        "rewritten": ["f (train)"],
    }
    assert found.words()[:2] == ["changed: a (train)", "with another label: b (train, cat -> dog)"]
    many = compare_images([], rows(**{f"p{i}": "train cat 1" for i in range(20)}))
    assert many.words() == ["added: p0 (train), p1 (train), p2 (train), p3 (train), p4 (train), … (15 more)"]


def test_a_changed_picture_that_is_drawn_into_another_split_is_still_found() -> None:
    found = compare_images(rows(a="train cat 1"), rows(a="val cat 2"))
    assert (found.changed, found.added, found.removed) == (("a (train -> val)",), (), ())


def test_what_was_lost_in_bringing_it_to_size_counts_as_changed() -> None:
    before = ImageRecord("train", "a.png", "cat", "100", "f" * 32, "00000001")
    assert compare_images([before], [before._replace(content="00000002")]).changed == ("a.png (train)",)
    assert not compare_images([before], [before._replace(content="")])  # not known


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
def test_the_same_pictures_in_another_order_are_the_same(found: list[ImageRecord], random: Any) -> None:
    found = list({(image.split, image.id): image for image in found}.values())
    other = list(found)
    random.shuffle(other)
    assert not compare_images(found, other)


def packed(root: Path) -> Any:
    source = open_source("folder", root=str(root))
    return pack_splits(source, {"size": 8})[0]


def test_the_record_of_pictures_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    data = packed(pictures(tmp_path / "data"))
    for name in ("a", "b"):
        write_images(tmp_path / name, data, {data["train"].ids[0]: 77})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = read_images(tmp_path / "a")
    assert found == list(list_images(data, {data["train"].ids[0]: 77}))
    assert found is not None
    assert len({image.pixels for image in found}) == len(found) == 64
    assert (found[0].bytes, found[1].bytes) == ("77", "")
    assert {image.label for image in found} == {"cat", "dog"}
    assert read_images(tmp_path / "none") is None


def test_names_of_any_kind_come_back(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i, name in enumerate(['a,"b".png', "two\nlines.png", " é ü.png"]):
        write_image(root / "x" / name, noise(4, 4, seed=i))
        write_image(root / "y" / name, noise(4, 4, seed=i + 10))
    data = packed(root)
    data["train"] = replace(data["train"], ids=("\udcff.png", *data["train"].ids[1:]))  # from another source
    write_images(tmp_path / IMAGES, data)
    found = read_images(tmp_path / IMAGES)
    assert found is not None
    assert [image.id for image in found] == [name for split in data.values() for name in split.ids]


@pytest.mark.parametrize("content", [b"", b"no gzip", None, b"\x1f\x8b\x08\0"])
def test_a_damaged_record_of_pictures_is_named(content: bytes | None, pair: tuple[Path, Path]) -> None:
    a, b = pair
    whole = (a / IMAGES).read_bytes()
    (a / IMAGES).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ArtifactError, match=r"images\.csv\.gz' is damaged, or cannot be read"):
        certified(a, b)


@pytest.mark.rows("X01")
def test_a_resumed_run_names_the_picture_that_has_changed(tmp_path: Path) -> None:
    run = trained(tmp_path)
    alter(tmp_path / "data" / "train" / "dog" / "3.png")
    with pytest.raises(ArtifactError, match=r"the train images: the content is not.* changed: \S*dog/3\.png \(train\)"):
        sightline.resume(run)
