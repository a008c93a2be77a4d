"""`sightline show`, `sightline cache`, and the keys of the data node from the config to the batches: what they change,
and what they must not change."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sightline as library
from helpers.commands import Command
from helpers.images import noise, write_folders, write_image
from sightline.config.typed import merge
from sightline.core.errors import ArtifactError
from sightline.core.files import sha256
from sightline.data.cache.dataset import EncodedImages
from sightline.data.cache.directory import Cache
from sightline.data.loading.loader import BatchLoader

CELL, GAP, LINE = 128, 8, 16


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Asserts that the command ended with 2 and printed each of `parts` to standard error, without a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, done.stderr + done.stdout
    for part in parts:
        assert part in done.stderr, done.stderr


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "images", {"cat": 9, "dog": 9})


def cell(sheet: Image.Image, line: int, column: int) -> np.ndarray:
    """The pixels of one cell of a sheet of square images."""
    left, top = GAP + column * (CELL + GAP), GAP + LINE + line * (CELL + LINE + GAP)
    return np.asarray(sheet.crop((left, top, left + CELL, top + CELL)).convert("L"))


def enlarged(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST))


# --- show


def test_a_sheet_shows_the_file_the_network_input_and_augmentations(
    sightline: Command, tmp_path: Path, images: Path
) -> None:
    arguments = ["show", "images", "data.augment.flip=1", "data.augment.shift=0", "--count", "5", "--epochs", "3"]
    output = output_of(sightline(*arguments, "--out", "mine.png", "seed=3"))
    assert output == "mine.png  688 x 784 pixels: 5 training images\n"
    with Image.open(tmp_path / "mine.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (GAP + 5 * (CELL + GAP), GAP + LINE + 5 * (CELL + LINE + GAP)) == (688, 784)
        sheet.load()
    files = {enlarged(np.asarray(Image.open(path))).tobytes(): path for path in images.rglob("*.png")}
    drawn = [files[cell(sheet, line, 0).tobytes()] for line in range(5)]
    assert len(set(drawn)) == 5
    for line, path in enumerate(drawn):
        assert np.array_equal(cell(sheet, line, 1), cell(sheet, line, 0)), "the network sees the file unchanged"
        mirrored = enlarged(np.asarray(Image.open(path))[:, ::-1])
        for epoch in range(3):
            assert np.array_equal(cell(sheet, line, 2 + epoch), mirrored)


def test_a_sheet_is_a_function_of_the_seed(here: Command, tmp_path: Path, images: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        output_of(here("show", "images", f"seed={seed}", "data.val=0", "data.test=0", "--out", f"{name}.png"))
    sums = [sha256(tmp_path / f"{name}.png") for name in "abc"]
    assert sums[0] == sums[1] != sums[2]
    with Image.open(tmp_path / "a.png") as sheet:
        epochs = [[cell(sheet, line, column).tobytes() for line in range(8)] for column in range(2, 6)]
    assert len(set(map(tuple, epochs))) == 4, "every epoch shows another augmentation"


def test_a_sheet_of_the_digits_needs_no_arguments(here: Command, tmp_path: Path) -> None:
    assert output_of(here("show")).startswith("sheet.png  824 x 1240 pixels: 8 training images")
    assert (tmp_path / "sheet.png").is_file()


def test_a_sheet_shows_the_epochs_of_a_crop_from_the_original(here: Command, tmp_path: Path) -> None:
    """Encoded images of many sizes, with Unicode and brackets in class names; workers and cache do not change it."""
    for i in range(8):
        name = ("Katze 猫", "[old] dogs")[i % 2]
        write_image(tmp_path / "images" / name / f"{i}.png", noise(90 + i, 70, 3, seed=i))
    arguments = ["show", "images", "data.preprocess.size=32", "data.augment.crop=[0.1,0.3]", "data.store=encoded"]
    output_of(here(*arguments, "--out", "a.png", "data.workers=0"))
    output_of(here(*arguments, "--out", "b.png", "data.workers=2", "data.cache=false"))
    assert sha256(tmp_path / "a.png") == sha256(tmp_path / "b.png")


def test_a_sheet_of_fewer_images_than_asked_for(here: Command, tmp_path: Path) -> None:
    write_folders(tmp_path / "images", {"cat": 2, "dog": 1})
    done = here("show", "images", "data.val=0", "data.test=0", "--count", "50", "--epochs", "1")
    assert output_of(done) == f"sheet.png  {GAP + 3 * (CELL + GAP)} x {24 + 3 * 152} pixels: 3 training images\n"


def test_a_sheet_skips_bad_images(here: Command, tmp_path: Path, images: Path) -> None:
    (images / "cat" / "3.png").write_text("no image")
    refused(here("show", "images"), "cat/3.png' is not an image", "data.on_bad=skip")
    assert not (tmp_path / "sheet.png").exists()
    arguments = ["data.on_bad=skip", "data.val=0", "data.test=0", "--count", "18"]
    assert "17 training images" in output_of(here("show", "images", *arguments))


def test_a_sheet_shows_a_16_bit_image_unchanged(here: Command, tmp_path: Path) -> None:
    for i in range(6):
        pixels = noise(4, 4, seed=i).astype(np.uint16) * 257
        write_image(tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i}.png", Image.fromarray(pixels))
    output_of(here("show", "images", "--count", "2"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.array_equal(cell(sheet, 0, 0), cell(sheet, 0, 1))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "there.png"], ["--out: 'there.png' already exists. Choose another name"]),
        (["--out", "images"], ["--out: 'images' already exists"]),
        (["--out", "no/where.png"], ["--out: the directory 'no' does not exist"]),
        (["--out", "sheet.txt"], ["'sheet.txt' does not have the suffix of an image format. Use 'sheet.png'"]),
        (["--out", "sheet"], ["'sheet' does not have the suffix of an image format. Use 'sheet.png'"]),
        (["--count", "0"], ["expected an integer >= 1, found 0"]),
        (["--count", "some"], ["argument --count"]),
        (["--epochs", "-1"], ["expected an integer >= 1, found -1"]),
        (["data.augment.flpi=1"], ["unknown key 'data.augment.flpi'", "Did you mean 'data.augment.flip'?"]),
        (["data.augment.crop=[1,0.5]"], ["data.augment.crop: expected two numbers [min, max]"]),
        (["--wide"], ["unrecognized arguments: --wide"]),
    ],
)
def test_a_mistake_in_show_is_reported(
    arguments: list[str], expected: list[str], here: Command, tmp_path: Path, images: Path
) -> None:
    (tmp_path / "there.png").write_text("precious")
    before = sorted(tmp_path.iterdir())
    refused(here("show", "images", *arguments), *expected)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.png").read_text() == "precious"


def test_show_of_a_missing_directory(here: Command, images: Path) -> None:
    refused(here("show", "image"), "data.root: 'image' does not exist", "Did you mean 'images'?")


@pytest.mark.parametrize("out", ["sheet.h5", "/proc/sheet.png", "tall.jpg"])
def test_a_sheet_that_cannot_be_written_is_an_error(out: str, here: Command, tmp_path: Path) -> None:
    """A format that Pillow cannot write, a directory that accepts no files, more lines than a JPEG can have."""
    if out.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    refused(here("show", "--count", "440", "--epochs", "1", "--out", out), "--out")
    assert list(tmp_path.iterdir()) == []


# --- cache


def fill_cache(here: Command, cache: Path, *overrides: str) -> None:
    """Puts the images into the cache."""
    out = cache.parent / f"{len(list(cache.parent.iterdir()))}.png"
    output_of(here("show", "images", *overrides, f"data.cache_dir={cache}", "--count", "1", "--out", out))


def test_the_cache_is_listed_limited_and_cleared(here: Command, tmp_path: Path) -> None:
    root, cache = tmp_path / "[old] images", tmp_path / "the cache"
    write_folders(root, {"cat": 6, "dog": 6})
    (tmp_path / "images").symlink_to(root)
    assert output_of(here("cache", "--dir", cache)) == f"0 entries, 0 bytes in {cache}\n"
    fill_cache(here, cache)
    fill_cache(here, cache, "data.preprocess.size=7", "data.preprocess.channels=3", "data.store=encoded")
    output = output_of(here("cache", "--dir", cache))
    lines = output.splitlines()
    assert lines[0].split() == ["images", "size", "format", "last", "used", "source"]
    assert lines[-1].startswith("2 entries, ")
    assert lines[-1].endswith(f" in {cache}")
    assert "encoded 7 x 7 x 3" in lines[1]
    assert "pixels 4 x 4 x 1" in lines[2]
    assert all(line.split()[0] == "12" and line.endswith(f"  {root}") for line in lines[1:3])
    newest, oldest = Cache(cache).entries()
    limit = (newest.size + oldest.size / 2) / 2**30
    output = output_of(here("cache", "--dir", cache, "--limit", repr(limit)))
    assert "KiB freed in" in output.splitlines()[0]
    assert [entry.path for entry in Cache(cache).entries()] == [newest.path]
    assert "1 entry," in output
    output = output_of(here("cache", "--dir", cache, "--clear"))
    assert output.endswith(f" freed in {cache}\n")
    assert not output.startswith("0 bytes")
    assert output_of(here("cache", "--dir", cache)).startswith("0 entries, 0 bytes")
    assert [path.name for path in cache.iterdir()] == ["locks"]


def test_a_name_in_brackets_is_listed_unchanged(here: Command, tmp_path: Path) -> None:
    write_folders(tmp_path / "[/old] [red]images", {"cat": 3, "dog": 3})
    (tmp_path / "[b]cache").mkdir()
    arguments = ["[/old] [red]images", f"data.cache_dir={tmp_path / '[b]cache'}"]
    output_of(here("show", *arguments))
    output = output_of(here("cache", "--dir", "[b]cache"))
    assert "[/old] [red]images" in output
    assert output.endswith(" in [b]cache\n")


def test_the_cache_directory_of_the_environment_is_listed(sightline: Command, tmp_path: Path) -> None:
    done = sightline("cache", env={"SIGHTLINE_CACHE": str(tmp_path / "mine")})
    assert output_of(done) == f"0 entries, 0 bytes in {tmp_path / 'mine'}\n"
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("arguments", [["--limit", "much"], ["--clear", "--limit", "1"], ["all"], ["--limit"]])
def test_a_mistake_in_cache_is_reported(arguments: list[str], here: Command) -> None:
    refused(here("cache", *arguments), "sightline cache: error:")


@pytest.mark.parametrize("limit", ["nan", "-1"])
def test_an_invalid_limit_deletes_nothing(limit: str, here: Command, tmp_path: Path, images: Path) -> None:
    fill_cache(here, tmp_path / "cache")
    refused(here("cache", "--dir", "cache", f"--limit={limit}"), "--limit")
    assert len(Cache(tmp_path / "cache").entries()) == 1


def test_other_files_in_a_cache_directory_are_kept(here: Command, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "meta.json").write_text('{"name": "mine"}')
    (tmp_path / ".hidden").write_text("mine")
    assert "0 entries" in output_of(here("cache", "--dir", "."))
    output_of(here("cache", "--dir", ".", "--clear"))
    assert (tmp_path / "experiment" / "meta.json").is_file()
    assert (tmp_path / ".hidden").is_file()


# --- the keys of the data node


QUICK: dict[str, Any] = {
    "trainer": {"max_epochs": 2, "progress": False},
    "module": {"network": {"width": 4}},
    "data": {"batch_size": 4, "augment": {"flip": 0.5, "rotate": 20, "erase": 0.3, "brightness": 0.3}},
}


def config(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    return merge({**QUICK, "run": {"dir": str(folder), "name": name}}, changes)


def weights(folder: Path, name: str) -> str:
    return sha256(folder / name / "exported" / "model.safetensors")


SETTINGS: list[dict[str, Any]] = [
    {},
    {"workers": 0},
    {"workers": 1, "prefetch": 0},
    {"workers": 4, "prefetch": 5},
    {"store": "encoded"},
    {"store": "encoded", "workers": 0},
    {"store": "encoded", "cache": False, "workers": 3, "prefetch": 1},
    {"store": "pixels", "cache": False},
    {"store": "auto", "workers": 2, "prefetch": 1},
]


@pytest.mark.rows("X15")
def test_neither_threads_nor_depth_nor_store_nor_cache_change_the_weights(tmp_path: Path, images: Path) -> None:
    """`fit` from PNG files to the exported network gives identical bits."""
    data = {"root": str(images), "cache_dir": str(tmp_path / "cache")}
    results = set()
    for position, settings in enumerate(SETTINGS):
        result = library.fit(config(tmp_path, f"run{position}", data=data | settings))
        results.add((weights(tmp_path, f"run{position}"), json.dumps(result.history)))
    other = library.fit(config(tmp_path, "other", data=data, seed=1))
    ((digest, history),) = results
    assert weights(tmp_path, "other") != digest
    assert json.dumps(other.history) != history
    stores = sorted(entry.meta["store"] for entry in Cache(tmp_path / "cache").entries())
    assert stores == ["encoded", "pixels"]


def test_without_a_cache_nothing_is_written(tmp_path: Path, images: Path, cache: Path) -> None:
    before = sorted(cache.rglob("*"))
    library.fit(config(tmp_path, "run", data={"root": str(images), "cache": False, "cache_dir": str(tmp_path / "x")}))
    assert not (tmp_path / "x").exists()
    assert sorted(cache.rglob("*")) == before


def test_a_cache_limit_is_applied(tmp_path: Path, images: Path) -> None:
    for size in (4, 5, 6):
        data = {
            "root": str(images),
            "cache_dir": str(tmp_path / "cache"),
            "cache_limit": 0,
            "preprocess": {"size": size},
        }
        library.fit(config(tmp_path, f"run{size}", data=data))
    (entry,) = Cache(tmp_path / "cache").entries()
    assert entry.meta["shape"][2:] == [6, 6]


class Stop(library.Callback):
    """Interrupts training after `step` steps, as Ctrl-C does."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, trainer: Any, output: Any) -> None:
        if trainer.state.step == self.step:
            trainer.interrupt()


@pytest.mark.rows("X15")
@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_a_run_resumed_with_other_threads_and_cache_has_the_same_bits(tmp_path: Path, images: Path, store: str) -> None:
    data = {"root": str(images), "store": store, "cache_dir": str(tmp_path / "cache"), "workers": 2}
    uninterrupted = library.fit(config(tmp_path, "uninterrupted", data=data))
    for position, change in enumerate(
        [{"workers": 0}, {"workers": 4, "prefetch": 7}, {"cache": False}, {"cache_dir": str(tmp_path / "new")}]
    ):
        interrupted = library.fit(config(tmp_path, f"interrupted{position}", data=data), callbacks=[Stop(4)])
        assert interrupted.interrupted
        resumed = library.resume(tmp_path / f"interrupted{position}", {"data": change}).fit()
        assert resumed.history == uninterrupted.history
        assert weights(tmp_path, f"interrupted{position}") == weights(tmp_path, "uninterrupted")


@pytest.mark.slow
def test_the_command_resumes_only_with_keys_that_keep_the_result(
    sightline: Command, tmp_path: Path, images: Path
) -> None:
    data = {"root": str(images), "cache_dir": str(tmp_path / "cache")}
    library.fit(config(tmp_path / "runs", "uninterrupted", data=data))
    library.fit(config(tmp_path / "runs", "interrupted", data=data), callbacks=[Stop(3)])
    for override in ("data.store=encoded", "data.drop_last=true", "data.augment.flip=0"):
        refused(sightline("resume", "runs/interrupted", override), "--allow-drift", override.partition("=")[0])
    output_of(sightline("resume", "runs/interrupted", "data.workers=0", "data.prefetch=4", "data.cache=false"))
    assert weights(tmp_path / "runs", "interrupted") == weights(tmp_path / "runs", "uninterrupted")


def test_resuming_on_other_pixels_is_refused(tmp_path: Path, images: Path) -> None:
    library.fit(config(tmp_path, "interrupted", data={"root": str(images)}), callbacks=[Stop(3)])
    file = next((images / "cat").iterdir())
    write_image(file, noise(4, 4, seed=12345))
    with pytest.raises(ArtifactError, match="a training with other images or labels"):
        library.resume(tmp_path / "interrupted")


AUGMENT: dict[str, Any] = {
    "flip": 1.0, "vertical_flip": 1.0, "shift": 2, "crop": [0.2, 0.5], "rotate": 90.0, "translate": 0.4,
    "scale": [0.5, 0.6], "shear": 40.0, "brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "policy": "trivial",
    "erase": 1.0, "cutout": 3,
}  # fmt: skip
EXTRA: dict[str, tuple[dict[str, Any], Any]] = {
    "crop_ratio": ({"crop": [0.2, 0.5]}, [0.1, 0.2]),
    "rand_ops": ({"policy": "rand"}, 5),
    "rand_magnitude": ({"policy": "rand"}, 30),
}


def first_epoch(folder: Path, images: Path, augment: dict[str, Any], store: str = "pixels") -> Tensor:
    """The images of a run's first epoch with these augmentations, in dataset order."""
    data = {"root": str(images), "augment": {"shift": 0, **augment}, "store": store, "preprocess": {"size": 8}}
    assembly = library.assemble({"run": {"dir": str(folder)}, "data": data, "trainer": {"progress": False}})
    train = assembly.trainer.train
    assert isinstance(train, BatchLoader)
    assert isinstance(train.dataset.images, EncodedImages) is (store == "encoded")
    train.seek(0)
    x, index = (torch.cat(parts) for parts in zip(*((b.x, b.index) for b in train), strict=True))
    assembly.trainer.recorder.close()  # type: ignore[union-attr]
    assert torch.isfinite(x).all()
    return x[index.argsort()]


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    for i in range(16):
        write_image(tmp_path / "colours" / ("cat", "dog")[i % 2] / f"{i:02}.png", noise(8, 8, 3, seed=i))
    return tmp_path / "colours"


@pytest.mark.parametrize("key", [*AUGMENT, *EXTRA])
def test_every_augmentation_of_the_config_reaches_the_batches(key: str, tmp_path: Path, colours: Path) -> None:
    base, value = EXTRA.get(key, ({}, AUGMENT.get(key)))
    plain = first_epoch(tmp_path / "a", colours, base)
    augmented = first_epoch(tmp_path / "b", colours, {**base, key: value})
    assert (plain != augmented).flatten(1).any(1).float().mean() > 0.5
    assert torch.equal(augmented, first_epoch(tmp_path / "c", colours, {**base, key: value}))
    encoded = first_epoch(tmp_path / "d", colours, {**base, key: value}, "encoded")
    if "crop" in base or key == "crop":
        # Pillow crops the file and torch crops the pixels: the same region, with different rounding
        assert (encoded - augmented).abs().mean() < 0.25
    else:
        assert torch.equal(encoded, augmented)


def test_every_key_of_the_augmentations_is_tested() -> None:
    from sightline.config.schema import walk

    keys = {key.removeprefix("data.augment.") for key, _ in walk() if key.startswith("data.augment.")}
    assert keys == {*AUGMENT, *EXTRA, "transforms"}


def test_custom_transforms_run_on_each_image(tmp_path: Path, colours: Path) -> None:
    node = {"_target_": "torchvision.transforms.v2.RandomInvert", "p": 1.0}
    values = {"mean": [0.0], "std": [1.0]}

    def first(transforms: list[dict[str, Any]], name: str) -> Tensor:
        data = {"root": str(colours), "augment": {"shift": 0, "transforms": transforms}, "preprocess": values}
        assembly = library.assemble({"run": {"dir": str(tmp_path / name)}, "data": data,
                                     "trainer": {"progress": False}})  # fmt: skip
        batch = next(iter(assembly.trainer.train))
        assembly.trainer.recorder.close()  # type: ignore[union-attr]
        assert isinstance(batch.x, Tensor)
        return batch.x

    plain, inverted = first([], "a"), first([node], "b")
    assert torch.allclose(inverted, 1 - plain, atol=1e-6)
    assert torch.equal(first([node, node], "c"), plain)


def test_the_command_takes_the_keys_of_the_data_node(here: Command, tmp_path: Path, images: Path) -> None:
    arguments = [
        "train", "data.root=images", "data.workers=0", "data.prefetch=1", "data.store=encoded", "data.cache=false",
        "data.on_bad=skip", "data.augment.crop=[0.5,1]", "data.augment.policy=rand", "trainer.max_epochs=1",
        "module.network.width=4", "run.name=mine", "data.preprocess.size=8",
    ]  # fmt: skip
    output_of(here(*arguments))
    from sightline.core.yamlfile import read_yaml

    data = read_yaml(tmp_path / "runs" / "mine" / "config.yaml")["data"]
    assert (data["workers"], data["prefetch"], data["store"], data["cache"]) == (0, 1, "encoded", False)
    assert (data["augment"]["crop"], data["augment"]["policy"]) == ([0.5, 1.0], "rand")
    assert json.loads((tmp_path / "runs" / "mine" / "data.json").read_text())["left_out"] == []


@pytest.mark.slow
def test_the_command_trains_with_a_warning_if_the_cache_cannot_be_written(
    sightline: Command, tmp_path: Path, images: Path
) -> None:
    (tmp_path / "place").write_text("a file")
    options = ["data.root=images", "trainer.max_epochs=1", "module.network.width=4", "data.preprocess.size=8"]
    done = sightline("train", *options, "data.cache_dir=place", "run.name=mine")
    output_of(done)
    assert "cannot be kept in 'place'" in done.stderr
    assert "Traceback" not in done.stderr
    output_of(sightline("train", *options, "data.cache=false", "run.name=other"))
    assert weights(tmp_path / "runs", "mine") == weights(tmp_path / "runs", "other")
