"""Mistakes of users, for tests/integration/test_messages_shown.py: what is run, and the files that it needs.

`COMMANDS` are command lines without the word `sightline`, `PROCESSES` are those that run in a separate process, and
`CALLS` are functions. Each case runs in an empty directory, in which its files are made first."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sightline
import sightline.learner as tf
from helpers.images import noise, write_folders, write_image, write_table
from helpers.learner_problem import FEATURES, X, Y, network
from helpers.learner_problem import train as learn
from helpers.params_digits import small_digits
from helpers.params_user import small, test_step_for, train_step
from helpers.tampered_artifact import rewrite, with_network
from sightline.core.types import Batch
from sightline.data.loading.adapter import LoaderAdapter
from sightline.engine.callbacks import Callback
from sightline.engine.tools.lr_finder import find_lr
from sightline.params import build_classifier
from sightline.params import train as train_params


@dataclass(frozen=True)
class Place:
    """The directory that a case runs in. `trained(kind)` returns a finished run, which is made once and not changed."""

    path: Path
    trained: Callable[[str], Path]

    def run(self, kind: str = "config") -> Path:
        """Copies a finished run to `runs/first`."""
        return Path(shutil.copytree(self.trained(kind), self.path / "runs" / "first"))


Make = Callable[[Place], object]


@dataclass(frozen=True)
class Case:
    """A command line or a function, and functions that make the files it needs."""

    run: str | Make
    files: tuple[Make, ...] = ()


def case(run: str | Make, *files: Make) -> Case:
    return Case(run, files)


# ---- files ----


def folders(root: str = "images", /, **counts: int) -> Make:
    """Folders of 4 x 4 images; `__` in a name stands for `/`."""
    return lambda place: write_folders(place.path / root, {k.replace("__", "/"): n for k, n in counts.items()})


def image(name: str, *shape: int) -> Make:
    """An image of this height, width and, if it is in colour, 3 channels."""
    return lambda place: write_image(place.path / name, noise(*shape, seed=len(name)))


def content(name: str, text: str | bytes) -> Make:
    def make(place: Place) -> None:
        file = place.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def table(*rows: str, header: str = "file,label", name: str = "labels.csv") -> Make:
    """Images 0.png to 7.png and a table of these rows, by default one per image of two classes."""

    def make(place: Place) -> None:
        for i in range(8):
            write_image(place.path / "images" / f"{i}.png", noise(4, 4, seed=i))
        write_table(place.path / "images" / name, header, rows or [f"{i}.png,{'ab'[i % 2]}" for i in range(8)])

    return make


def npz(**arrays: Any) -> Make:
    return lambda place: np.savez(place.path / "data.npz", **arrays)


def parquet(**columns: Any) -> Make:
    def make(place: Place) -> None:
        import pyarrow as pa
        from pyarrow import parquet as pq

        pq.write_table(pa.table(columns), place.path / "data.parquet")

    return make


def archive(**members: bytes) -> Make:
    """A zip file of folders with images, and members; `__` in a name stands for `/`."""

    def make(place: Place) -> None:
        source = write_folders(place.path / "source", {"cat": 2, "dog": 2})
        with zipfile.ZipFile(place.path / "images.zip", "w") as file:
            for path in sorted(source.rglob("*.png")):
                file.write(path, path.relative_to(source).as_posix())
            for name, data in members.items():
                file.writestr(name.replace("__", "/"), data)

    return make


def cut(name: str, count: int = 40) -> Make:
    """Removes the last `count` bytes of a file."""

    def make(place: Place) -> None:
        file = place.path / name
        file.write_bytes(file.read_bytes()[:-count])

    return make


def flip(name: str) -> Make:
    """Changes a byte in the middle of a file."""

    def make(place: Place) -> None:
        file = place.path / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 255
        file.write_bytes(data)

    return make


def remove(name: str) -> Make:
    def make(place: Place) -> None:
        path = place.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def replace(name: str, old: str, new: str) -> Make:
    """Edits a text file."""

    def make(place: Place) -> None:
        file = place.path / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return make


def encoded(pixels: Any) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def idx(*shape: int) -> bytes:
    """The bytes of an IDX file of zeros."""
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + bytes(int(np.prod(shape)))


def a_run(kind: str = "config") -> Make:
    return lambda place: place.run(kind)


def own_data(place: Place) -> None:
    """Copies the data of the run to `images`, and makes the run's config name it."""
    data = place.trained("config").parents[1] / "images"
    shutil.copytree(data, place.path / "images")
    replace("runs/first/config.yaml", str(data), str(place.path / "images"))(place)


def manifest(change: Callable[[dict[str, Any]], Any]) -> Make:
    return lambda place: rewrite(place.path / EXPORTED, change)


def given(*names: str) -> Make:
    """Marks a run as started with parts passed in from Python."""

    def make(place: Place) -> None:
        file = place.path / "runs" / "first" / "environment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"given": list(names)}))

    return make


PNG = encoded(noise(4, 4))
EXPORTED = "runs/first/exported"
CKPT, OLDER = "runs/first/checkpoints/last.ckpt", "runs/first/checkpoints/last-1.ckpt"
PETS = folders(cat=12, dog=12)
FLAT = "{_target_: torch.nn.Flatten}"
NAN_NET = (
    "import torch\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self):\n"
    "        super().__init__(64, 10)\n\n    def forward(self, x):\n        out = super().forward(x.flatten(1))\n"
    "        return out * float('nan') if self.training else out\n"
)
FAILING_NET = NAN_NET.replace(
    "return out * float('nan') if self.training else out",
    "if self.training and x.device.type != 'meta':\n            raise KeyError('scale')\n        return out",
)


def layers(*nodes: str) -> str:
    """The override for a network of these layers."""
    return f"'module.network={{layers: [{', '.join(nodes)}]}}'"


def conv(size: int, channels: int | str = 1) -> str:
    return f"{{_target_: torch.nn.Conv2d, in_channels: {channels}, out_channels: 2, kernel_size: {size}}}"


def linear(inputs: int | str, outputs: int | str = "auto") -> str:
    return f"{{_target_: torch.nn.Linear, in_features: {inputs}, out_features: {outputs}}}"


# ---- commands ----

OPTIONS = {
    "command/unknown": case("trian"),
    "command/unknown-option": case("--versoin"),
    "train/option-unknown": case("train --epochs 3"),
    "train/cfg-value": case("train --cfg all"),
    "train/config-dir-missing": case("train --config-dir conf"),
    "train/config-name-unknown": case("train --config-name fast"),
    "evaluate/no-run-named": case("evaluate"),
    "evaluate/split-unknown": case("evaluate runs/first --split tset", a_run()),
    "evaluate/key-not-allowed": case("evaluate runs/first trainer.device=cpu", a_run()),
    "predict/no-image-named": case("predict runs/first"),
    "predict/top-not-a-number": case("predict runs/first a.png --top many"),
    "predict/path-missing": case("predict runs/first imgaes", a_run(), folders(cat=1)),
    "predict/folder-without-images": case("predict runs/first notes", a_run(), content("notes/a.txt", "x")),
    "predict/damaged-image": case("predict runs/first images", a_run(), folders(cat=1), cut("images/cat/0.png")),
    "predict/device-unknown": case("predict runs/first images --device gpu", a_run(), folders(cat=1)),
    "resume/key-not-allowed": case("resume runs/first run.name=x"),
    "resume/not-an-override": case("resume runs/first 10"),
    "reproduce/key-not-allowed": case("reproduce runs/first trainer.device=cpu"),
    "reproduce/directory-inside-the-run": case("reproduce runs/first --dir runs/first/again", a_run()),
    "runs/directory-missing": case("runs rnus", a_run()),
    "runs/sort-unknown": case("runs --sort test_acuracy", a_run()),
    "runs/columns-of-a-group": case("runs --columns data.preprocess", a_run()),
    "diff/one-run-only": case("diff runs/first"),
    "load/run-missing": case("load runs/frist", a_run()),
    "lr-find/steps-too-few": case("lr-find --steps 5"),
    "lr-find/low-above-high": case("lr-find --low 1 --high 0.1"),
    "lr-find/out-suffix": case("lr-find --out curve.txt"),
    "show/count-zero": case("show --count 0"),
    "show/out-exists": case("show --out sheet.png", content("sheet.png", "")),
    "cache/limit-negative": case("cache --limit=-1"),
    "cache/directory-is-a-file": case("cache --dir notes.txt", content("notes.txt", "")),
    "cache/clear-and-limit": case("cache --clear --limit 5"),
    "data/action-unknown": case("data convert idx out"),
    "data/source-missing": case("data convert-idx mnist out"),
    "data/no-idx-files": case("data convert-idx images out", folders(cat=1)),
    "data/prefix-with-folder": case("data convert-idx . out --prefix a/b"),
    "data/split-exists": case(
        "data convert-idx . .",
        content("train-images-idx3-ubyte", idx(4, 4, 4)),
        content("train-labels-idx1-ubyte", idx(4)),
        folders("train", a=1),
    ),
    "summary/argument-unknown": case("summary module.network.widht=8"),
    "inspect/path-missing": case("inspect imgaes", folders(cat=1)),
    "inspect/not-data": case("inspect notes.txt", content("notes.txt", "")),
    "inspect/column-missing": case("inspect images data.label_column=lable", table()),
    "env/argument-unknown": case("env --jsn"),
}

CONFIG = {
    "config/unknown-key": case("train trainer.max_epoch=3"),
    "config/unknown-key-of-another-group": case("train trainer.batch_size=8"),
    "config/unknown-key-at-the-top": case("train sede=1"),
    "config/unknown-key-without-suggestion": case("train module.q=1"),
    "config/unknown-group": case("train experimnt=mnist"),
    "config/unknown-preset": case("train experiment=mnits"),
    "config/preset-without-package-line": case(
        "train --config-dir conf experiment=mine", content("conf/experiment/mine.yaml", "seed: 3\n")
    ),
    "config/preset-not-yaml": case(
        "train --config-dir conf experiment=mine", content("conf/experiment/mine.yaml", "# @package _global_\na: [\n")
    ),
    "config/preset-group-unknown": case(
        "train --config-dir conf experiment=mine",
        content("conf/experiment/mine.yaml", "# @package _global_\ndefaults: [{override /lr_schedule: cosine}]\n"),
    ),
    "config/override-without-value": case("train mnist"),
    "config/override-of-hydra": case("train hydra.run.dir=x"),
    "config/override-unbalanced": case("train 'module.freeze=[a'"),
    "config/several-values": case("train seed=1,2"),
    "config/interpolation-unknown": case("train 'trainer.max_epochs=${epochs}'"),
    "config/value-for-a-group": case("train trainer=5"),
    "config/type-integer": case("train trainer.max_epochs=many"),
    "config/type-node": case("train module.network=resnet18"),
    "config/choice": case("train trainer.precision=bf61"),
    "config/range-integer": case("train data.batch_size=0"),
    "config/conflict-root-and-digits": case("train data.source=digits data.root=images"),
    "config/conflict-weights-and-pretrained": case("train weights=a.pt pretrained=true"),
    "config/conflict-model-and-network": case("train model=timm/resnet18 module.network._target_=torch.nn.Linear"),
    "config/regression-with-class-loss": case(
        "train data.target=number module.loss._target_=torch.nn.CrossEntropyLoss"
    ),
    "config/model-name": case("train model=resnet18"),
    "config/class-node-with-arguments": case("train 'module.loss={class: torch.nn.MSELoss, reduction: sum}'"),
}

PARTS = {
    "target/unknown-name": case("train module.network._target_=torch.nn.Linaer"),
    "target/unknown-module": case("train module.network._target_=qzwk.Net"),
    "target/not-a-dotted-name": case("train module.network._target_=Net"),
    "target/module-that-fails": case(
        "train module.network._target_=failing_module.Net",
        content("failing_module.py", "import nothing_of_this_name\n"),
    ),
    "target/not-callable": case("train module.network._target_=math.pi"),
    "target/not-a-module": case("train module.network._target_=collections.OrderedDict"),
    "target/not-an-optimizer": case("train 'module.optimizer={_target_: torch.nn.Identity}'"),
    "target/optimizer-with-closure": case("train 'module.optimizer={_target_: torch.optim.LBFGS}'"),
    "arguments/missing": case("train 'module.network={_target_: torch.nn.Linear}'"),
    "arguments/refused": case("train module.optimizer.lr=-1"),
    "arguments/auto-not-supported-in-a-layer": case(f"train {layers(conv(3).replace('2,', 'auto,'), FLAT, linear(4))}"),
    "arguments/schedule": case("train 'module.lr_scheduler={_target_: sightline.optim.WarmupCosineLR}'"),
    "arguments/schedule-range": case(
        "train 'module.lr_scheduler={_target_: sightline.optim.WarmupCosineLR, total_steps: auto, warmup: -1}'"
    ),
    "arguments/schedule-interval": case("train module.lr_scheduler.interval=batch"),
    "arguments/schedule-mode": case(
        "train 'module.lr_scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, mode: max}'"
    ),
    "layers/features": case(f"train {layers(FLAT, linear(60))}"),
    "layers/kernel": case(f"train {layers(conv(9), FLAT, linear('auto'))}"),
    "layers/outputs": case(f"train {layers(FLAT, linear('auto', 7))}"),
    "loss/not-one-number": case("train module.loss.reduction=none"),
    "loss/sum": case("train module.loss.reduction=sum"),
    "loss/log-probabilities": case("train module.loss._target_=torch.nn.NLLLoss"),
    "class-weights/count": case("train 'module.class_weights=[1,2]'"),
    "monitor/unknown": case("train module.monitor=val_acuracy"),
    "monitor/without-validation-split": case("train data.val=0"),
    "metric/name-with-slash": case("train 'module.metrics={a/b: {_target_: torch.nn.Identity}}'"),
    "metric/top-k": case("train 'module.top_k=[20]'"),
    "freeze/no-match": case("train 'module.freeze=[featrues]'"),
    "freeze/random-weights": case("train module.freeze_epochs=2"),
    "param-groups/unknown-argument": case("train 'module.param_groups=[{match: head, learning_rate: 0.1}]'"),
    "weights/missing": case("train weights=best.pt"),
    "weights/directory-without-weights": case("train weights=images", folders(cat=1)),
    "weights/not-weights": case("train weights=notes.pt", content("notes.pt", "hello")),
    "weights/of-another-network": case("train weights=runs/first", a_run()),
    "pretrained/without-data": case("train pretrained=true"),
    "pretrained/not-published": case("train pretrained=true data.root=images", PETS),
    "device/unknown": case("train trainer.device=gpu"),
    "run/name-with-slash": case("train run.name=a/b"),
    "run/name-taken": case("train run.name=first", a_run()),
    "run/directory-is-a-file": case("train run.dir=notes.txt", content("notes.txt", "")),
    "batches/none-left": case(
        "train data.root=images data.drop_last=true module.network.width=2", folders(cat=12, dog=12)
    ),
}

DATA = {
    "data/root-missing": case("train data.root=imgaes", folders(cat=1)),
    "data/root-not-data": case("train data.root=notes.txt", content("notes.txt", "")),
    "data/source-without-root": case("train data.source=folder"),
    "data/folder-empty": case("train data.root=images", lambda place: (place.path / "images").mkdir()),
    "data/folder-without-classes": case("train data.root=images", image("images/a.png", 4, 4)),
    "data/folder-with-other-files": case("train data.root=images", content("images/readme.txt", "")),
    "data/class-empty": case("train data.root=images", folders(cat=1), content("images/dog/a.txt", "")),
    "data/one-class": case("train data.root=images", folders(cat=4)),
    "data/splits-as-classes": case("train data.root=images", folders(train_set__a=1, train_set__b=1, test_set__a=1)),
    "data/one-level-too-deep": case("train data.root=images", folders(pets__cat=2, pets__dog=2)),
    "data/same-folders-in-each": case("train data.root=images", folders(a__x=1, a__y=1, b__x=1, b__y=1)),
    "data/class-only-in-val": case("train data.root=images", folders(train__cat=2, train__dog=2, val__dgo=1)),
    "data/no-train-folder": case("train data.root=images", folders(val__cat=2, val__dog=2)),
    "data/two-folders-of-a-split": case("train data.root=images", folders(train__cat=1, val__cat=1, valid__cat=1)),
    "data/image-damaged": case("train data.root=images", PETS, cut("images/cat/0.png")),
    "data/images-damaged": case(
        "train data.root=images", PETS, cut("images/cat/0.png"), content("images/dog/3.png", "")
    ),
    "data/not-an-image": case("train data.root=images", PETS, content("images/cat/note.png", "hello")),
    "data/unsupported-format": case(
        "train data.root=images", PETS, content("images/cat/a.heic", b"\0\0\0\x18ftypheic")
    ),
    "data/sizes": case("train data.root=images", PETS, image("images/cat/big.png", 6, 8)),
    "data/colours": case("train data.root=images", PETS, image("images/cat/colour.png", 4, 4, 3)),
    "data/too-few-to-hold-out": case("train data.root=images data.test=23", PETS),
    "csv/no-label-column": case("train data.root=images", table("0.png,a", header="file,kind")),
    "csv/no-image-column": case("inspect images", table("0.png,a", header="path,label")),
    "csv/table-missing": case("train data.root=images data.csv=label.csv", table()),
    "csv/two-tables": case("inspect images", table(), table(name="more.csv")),
    "csv/no-table": case("train data.root=images data.source=csv", folders(cat=1)),
    "csv/header-only": case("inspect images", content("images/labels.csv", "file,label\n")),
    "csv/not-utf-8": case("inspect images", content("images/labels.csv", b"file,label\n\xff,a\n")),
    "csv/file-missing": case("train data.root=images", table("0.png,a", "11.png,b")),
    "csv/file-outside": case("inspect images", table("0.png,a", "../secret.png,b")),
    "csv/no-file-name": case("inspect images", table("0.png,a", ",b")),
    "csv/no-label": case("inspect images", table("0.png,a", "1.png,")),
    "csv/cells": case("inspect images", table("0.png,a", "1.png,b,c")),
    "csv/listed-twice": case("inspect images", table("0.png,a", "1.png,b", "0.png,b")),
    "csv/label-out-of-range": case("train data.root=images data.classes=2", table("0.png,0", "1.png,7")),
    "csv/label-not-in-classes": case(
        "train data.root=images 'data.classes=[cat,dog]'", table("0.png,cat", "1.png,dgo")
    ),
    "csv/classes-twice": case("train data.root=images 'data.classes=[cat,cat]'", table()),
    "csv/split-unknown": case(
        "train data.root=images data.split_column=split", table("0.png,a,tran", header="file,label,split")
    ),
    "csv/no-row-in-train": case(
        "train data.root=images data.split_column=split", table("0.png,a,val", header="file,label,split")
    ),
    "csv/group-in-two-splits": case(
        "train data.root=images data.split_column=split data.group_column=patient",
        table("0.png,a,train,p1", "1.png,b,train,p2", "2.png,a,val,p1", header="file,label,split,patient"),
    ),
    "csv/no-group": case(
        "train data.root=images data.group_column=patient", table("0.png,a,p1", "1.png,b,", header="file,label,patient")
    ),
    "csv/group-cannot-be-held-out": case(
        "train data.root=images data.group_column=patient",
        table("0.png,a,p1", "1.png,a,p1", "2.png,b,p2", "3.png,b,p2", header="file,label,patient"),
    ),
    "columns/of-digits": case("train data.group_column=patient"),
    "columns/without-root": case("train data.csv=labels.csv"),
    "regression/of-digits": case("train data.target=number"),
    "regression/label-not-a-number": case("train data.root=images data.target=number", table("0.png,3.5", "1.png,old")),
    "regression/label-too-large": case("train data.root=images data.target=number", table("0.png,3.5", "1.png,1e60")),
    "regression/labels-all-equal": case(
        "train data.root=images data.target=number data.val=0 module.monitor=train_loss",
        table(*(f"{i}.png,3" for i in range(8))),
    ),
    "archive/truncated": case("inspect images.zip", archive(), cut("images.zip", 60)),
    "archive/member-damaged": case("train data.root=images.zip", archive(), flip("images.zip")),
    "archive/member-outside": case("inspect images.zip", archive(**{"..__x.png": b""})),
    "archive/damaged-tar": case("inspect images.tar.gz", content("images.tar.gz", "hello")),
    "archive/in-a-folder": case("inspect .", archive(), remove("source")),
    "npz/no-arrays": case("inspect data.npz", npz(features=np.zeros(3))),
    "npz/no-labels": case("inspect data.npz", npz(x_train=np.zeros((4, 8, 8), np.uint8))),
    "npz/lengths": case("inspect data.npz", npz(x=np.zeros((4, 8, 8), np.uint8), y=np.arange(3))),
    "npz/floats": case("inspect data.npz", npz(x=np.zeros((4, 8, 8)), y=np.arange(4))),
    "npz/one-hot": case("inspect data.npz", npz(x=np.zeros((4, 8, 8), np.uint8), y=np.eye(4))),
    "npz/pickled": case("inspect data.npz", npz(x=np.array([None]), y=np.arange(1))),
    "idx/no-labels": case("inspect mnist", content("mnist/train-images-idx3-ubyte", idx(4, 8, 8))),
    "idx/no-train": case(
        "inspect mnist",
        content("mnist/t10k-images-idx3-ubyte", idx(4, 8, 8)),
        content("mnist/t10k-labels-idx1-ubyte", idx(4)),
    ),
    "idx/truncated": case(
        "inspect mnist",
        content("mnist/train-images-idx3-ubyte", idx(4, 8, 8)[:-9]),
        content("mnist/train-labels-idx1-ubyte", idx(4)),
    ),
    "idx/not-idx": case(
        "inspect mnist",
        content("mnist/train-images-idx3-ubyte", "hello"),
        content("mnist/train-labels-idx1-ubyte", idx(4)),
    ),
    "idx/gzip-damaged": case(
        "inspect mnist",
        content("mnist/train-images-idx3-ubyte.gz", gzip.compress(idx(4, 8, 8))[:-12]),
        content("mnist/train-labels-idx1-ubyte", idx(4)),
    ),
    "parquet/image-column-of-numbers": case("inspect data.parquet", parquet(image=[1.5], label=["a"])),
    "parquet/no-label": case("inspect data.parquet", parquet(image=[b"x", b"y"], label=["a", None])),
    "parquet/no-image": case("train data.root=data.parquet", parquet(image=[PNG, PNG, None], label=["a", "b", "b"])),
    "parquet/damaged": case("inspect data.parquet", content("data.parquet", "hello")),
    "parquet/no-file": case("train data.root=images data.source=parquet", folders(cat=1)),
    "torchvision/unknown": case("train data.dataset=CIFAR11 data.source=torchvision data.root=data"),
    "torchvision/missing": case("train data.dataset=CIFAR10 data.source=torchvision data.root=data"),
}

RUNS = {
    "run/missing": case("resume runs/frist", a_run()),
    "run/not-a-run": case("evaluate images", folders(cat=1)),
    "run/not-exported": case("evaluate runs/first", a_run(), remove(EXPORTED)),
    "run/environment-damaged": case("resume runs/first", a_run(), content("runs/first/environment.json", "{")),
    "run/data-record-damaged": case("evaluate runs/first", a_run(), content("runs/first/data.json", "{}")),
    "run/config-damaged": case("resume runs/first", a_run(), content("runs/first/config.yaml", "data: [")),
    "run/config-edited": case(
        "resume runs/first", a_run(), replace("runs/first/config.yaml", "batch_size: 64", "batch_size: 8")
    ),
    "resume/key-that-changes-training": case("resume runs/first data.batch_size=8 module.ema=0.9", a_run()),
    "resume/other-data": case("resume runs/first data.root=images", a_run(), PETS),
    "resume/part-of-python": case("resume runs/first", a_run(), given("loss")),
    "resume/no-checkpoint": case("resume runs/first", a_run(), remove(CKPT), remove(OLDER)),
    "resume/checkpoint-damaged": case("resume runs/first", a_run(), remove(OLDER), flip(CKPT)),
    "resume/checkpoint-of-another-run": case(
        "resume runs/first", a_run(), replace("runs/first/environment.json", '"id": "', '"id": "0')
    ),
    "resume/schedule-length": case("resume runs/first trainer.max_epochs=3", a_run()),
    "evaluate/data-changed": case(
        "evaluate runs/first --split train", a_run(), own_data, image("images/cat/0.png", 8, 8)
    ),
    "evaluate/other-classes": case("evaluate runs/first data.root=images", a_run(), folders(cat=1, horse=1)),
    "evaluate/part-of-python": case("evaluate runs/first", a_run(), given("source")),
    "reproduce/unfinished": case(
        "reproduce runs/first", a_run(), replace("runs/first/config.yaml", "max_epochs: 1", "max_epochs: 2")
    ),
    "reproduce/part-of-python": case("reproduce runs/first", a_run(), given("loss", "model")),
    "reproduce/weights-changed": case("reproduce runs/first", a_run(), flip(f"{EXPORTED}/model.safetensors")),
    "diff/run-damaged": case("diff runs/first runs/first", a_run(), content("runs/first/data.json", "{")),
    "runs/damaged": case("runs", a_run(), content("runs/first/data.json", "{")),
    "load/manifest-damaged": case("load runs/first", a_run(), content(f"{EXPORTED}/sightline.json", "{")),
    "load/manifest-changed": case("load runs/first", a_run(), replace(f"{EXPORTED}/sightline.json", '"cat"', '"lion"')),
    "load/manifest-inconsistent": case("load runs/first", a_run(), manifest(lambda m: m.update(classes=["cat"]))),
    "load/manifest-key-missing": case("load runs/first", a_run(), manifest(lambda m: m.pop("preprocess") and m)),
    "load/format-of-later": case("load runs/first", a_run(), manifest(lambda m: m.update(format=9))),
    "load/weights-changed": case("load runs/first", a_run(), flip(f"{EXPORTED}/model.safetensors")),
    "load/weights-missing": case("load runs/first", a_run(), remove(f"{EXPORTED}/model.safetensors")),
    "load/target-not-allowed": case(
        "load runs/first", a_run(), lambda place: with_network(place.path / EXPORTED, {"_target_": "os.system"})
    ),
    "load/custom-network-not-allowed": case(
        "predict runs/first images",
        a_run(),
        folders(cat=1),
        lambda place: with_network(place.path / EXPORTED, {"_target_": "mynetwork.Net", "width": 4}),
    ),
    "load/downloads": case(
        "load runs/first",
        a_run(),
        lambda place: with_network(
            place.path / EXPORTED, {"_target_": "timm.create_model", "model_name": "resnet18", "pretrained": True}
        ),
    ),
    "load/network-too-large": case(
        "load runs/first",
        a_run(),
        lambda place: with_network(
            place.path / EXPORTED,
            {"layers": [{"_target_": "torch.nn.Linear", "in_features": 10**6, "out_features": 10**6}]},
        ),
    ),
    "train/loss-not-finite": case(
        "train module.network._target_=nan_net.Net trainer.progress=false run.name=nan", content("nan_net.py", NAN_NET)
    ),
    "train/step-fails": case(
        "train module.network._target_=failing_net.Net trainer.progress=false run.name=fails",
        content("failing_net.py", FAILING_NET),
    ),
}
COMMANDS = OPTIONS | CONFIG | PARTS | DATA | RUNS


# ---- Python ----

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
LABELS = np.arange(40) % 2
FLATTEN = {"_target_": "torch.nn.Flatten"}
LINEAR = {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": "auto"}


def tiny(place: Path, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config that trains a linear network for one epoch in `place/runs/first`."""
    values: dict[str, dict[str, Any]] = {
        "data": {},
        "module": {"network": {"layers": [FLATTEN, LINEAR]}},
        "trainer": {"max_epochs": 1, "progress": False, "device": "cpu"},
        "run": {"dir": str(place / "runs"), "name": "first"},
    }
    merged = {group: {**values[group], **changes.get(group, {})} for group in values}
    return {**merged, "module": changes.get("module", values["module"])}


def fit(place: Place, groups: Mapping[str, Mapping[str, Any]] | None = None, **parts: Any) -> object:
    """Trains on small arrays with the config of `tiny`, changed, and with these parts."""
    return sightline.fit(tiny(place.path, **(groups or {})), **{"source": (PIXELS, LABELS), **parts})


def linear_network(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))


def raising(*_: Any) -> Tensor:
    raise RuntimeError("no loss today")


class WrongEvent(Callback):
    """A callback with a method that is never called."""

    def on_epoch_begin(self) -> None: ...


class ToFloat:
    """A transform that returns another dtype."""

    def __call__(self, x: Tensor) -> Tensor:
        return x / 255


def state(network: nn.Module, optimizer: bool = True) -> sightline.TrainState:
    return sightline.TrainState(network, torch.optim.SGD(network.parameters(), lr=0.1) if optimizer else None)


def batches(size: int = 4, x: float = 0.0) -> list[Batch]:
    return [Batch(torch.full((size, 1, 8, 8), x), torch.arange(size) % 2) for _ in range(3)]


def trainer(train: Any, **options: Any) -> sightline.Trainer:
    task = options.pop("task", None) or sightline.SupervisedTask(nn.CrossEntropyLoss())
    return sightline.Trainer(task, state(linear_network()), train, max_epochs=1, **options)


def packed(**changes: Any) -> sightline.PackedDataset:
    values = {
        "images": torch.from_numpy(PIXELS)[:, None],
        "labels": torch.from_numpy(LABELS),
        "ids": [str(i) for i in range(40)],
        "classes": ("a", "b"),
    }
    return sightline.PackedDataset(**(values | changes))


def batch_loader(size: int = 8, **options: Any) -> Any:
    dataset = options.pop("dataset", None) or packed()
    return next(iter(sightline.BatchLoader(dataset, sightline.Preprocess(8, 8, 1), size, **options)))


def find(train: Any = None, *, optimizer: bool = True, **options: Any) -> object:
    task = sightline.SupervisedTask(nn.CrossEntropyLoss())
    return find_lr(task, state(linear_network(), optimizer), train or batches(), **options)


def digits(place: Place) -> None:
    """The layout of the params interface, with few digits."""
    small_digits(place.path / "data", train=40, test=10)


def by_params(place: Place, step: Any = train_step, **changes: Any) -> object:
    settings, path = small(num_epochs=1, **changes), place.path
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return train_params(settings, model, step, test_step_for(settings), path / "data", path / "runs" / "first")


def by_learner(place: Place, **options: Any) -> None:
    learn(tf.StandardModel(network()), place.path / "runs" / "first", options.pop("epochs", 1), **options)


def train_run(kind: str, folder: Path) -> Path:
    """Trains the run that cases copy, one epoch on few images, with the config, params or learner interface."""
    place = Place(folder, lambda kind: folder)
    if kind == "config":
        for number, name in enumerate(("cat", "dog")):
            for i in range(20):
                write_image(folder / "images" / name / f"{i}.png", noise(8, 8, seed=100 * number + i))
        sightline.fit(tiny(folder, data={"root": str(folder / "images")}))
    elif kind == "params":
        digits(place)
        by_params(place)
    else:
        by_learner(place)
    return folder / "runs" / "first"


def configured(values: Mapping[str, Any]) -> Case:
    """A call with a config that has these keys."""
    config: dict[str, Any] = {}
    for key, value in values.items():
        *groups, last = key.split(".")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return case(lambda place: sightline.fit(config))


SETTINGS = {
    "type/boolean": configured({"data.cache": "maybe"}),
    "type/null": configured({"seed": None}),
    "type/integer-found-number": configured({"trainer.max_epochs": 1.5}),
    "type/list": configured({"module.freeze": "head"}),
    "type/in-a-list": configured({"data.preprocess.size": [32, "a"]}),
    "type/nodes": configured({"module.lr_scheduler": "cosine"}),
    "type/metrics": configured({"module.metrics": "accuracy"}),
    "type/group": configured({"trainer": 3}),
    "type/choice-of-many": configured({"data.source": "foldr"}),
    "type/choice-of-numbers": configured({"data.preprocess.channels": 2}),
    "range/fraction": configured({"data.val": 1.5}),
    "range/probability": configured({"data.augment.flip": 1.5}),
    "range/degrees": configured({"data.augment.rotate": 200}),
    "range/interval-of-one": configured({"data.augment.crop": [0.5]}),
    "range/interval-reversed": configured({"data.augment.scale": [2, 1]}),
    "range/crop-pct": configured({"data.preprocess.crop_pct": 3}),
    "range/of-a-list": configured({"data.preprocess.std": [0]}),
    "range/size": configured({"data.preprocess.size": [32, 32, 3]}),
    "range/ema": configured({"module.ema": 1.0}),
    "range/layer-decay": configured({"module.layer_decay": 0}),
    "range/or-null": configured({"trainer.gradient_clip_val": 0}),
    "range/class-weights": configured({"module.class_weights": [-1, 1]}),
    "range/class-weights-all-zero": configured({"module.class_weights": [0, 0]}),
    "range/seed": configured({"seed": 2**63}),
    "conflict/crop-pct-and-pad": configured({"data.preprocess.crop_pct": 0.9, "data.preprocess.resize": "pad"}),
    "conflict/weights-by": configured({"module.weights_by": "order"}),
    "conflict/freeze-epochs": configured({"module.freeze_epochs": 30}),
    "conflict/class-weights-and-sampler": configured({"module.class_weights": "auto", "data.sampler": "balanced"}),
    "conflict/dataset-and-source": configured({"data.dataset": "CIFAR10", "data.source": "folder"}),
    "conflict/torchvision-without-dataset": configured({"data.source": "torchvision"}),
    "conflict/regression-and-classes": configured({"data.target": "number", "data.classes": 10}),
    "node/param-group-without-match": configured({"module.param_groups": [{"lr": 0.1}]}),
    "node/model-of-unknown-library": configured({"model": "tim/resnet18"}),
    "node/layers-and-another-key": configured({"module.network": {"layers": [FLATTEN], "width": 4}}),
    "node/layers-empty": configured({"module.network": {"layers": []}}),
    "node/layer-without-target": configured({"module.network": {"layers": [{"out_features": 3}]}}),
    "node/transform-without-target": configured({"data.augment.transforms": [{"degrees": 3}]}),
}
FITS = {
    "fit/unknown-key": case(lambda place: sightline.fit({"trainer": {"epochs": 3}})),
    "fit/config-file-missing": case(lambda place: sightline.fit("mnist.yaml")),
    "fit/config-file-key-twice": case(lambda place: sightline.fit("a.yaml"), content("a.yaml", "seed: 1\nseed: 2\n")),
    "fit/unknown-part": case(lambda place: fit(place, models=linear_network())),
    "fit/task-lacks-methods": case(lambda place: fit(place, task=nn.CrossEntropyLoss())),
    "fit/recorder-lacks-methods": case(lambda place: fit(place, recorder=print)),
    "fit/callback-with-unknown-event": case(lambda place: fit(place, callbacks=[WrongEvent()])),
    "fit/key-of-a-part": case(lambda place: fit(place, {"module": {"class_weights": "auto"}}, loss=nn.NLLLoss())),
    "fit/key-of-the-source": case(lambda place: fit(place, {"data": {"root": "images"}})),
    "fit/optimizer-of-another-network": case(
        lambda place: fit(place, optimizer=torch.optim.SGD(linear_network().parameters()))
    ),
    "fit/outputs-of-the-network": case(lambda place: fit(place, {"module": {}}, model=linear_network(3))),
    "fit/loss-that-fails": case(lambda place: fit(place, {"module": {}}, loss=raising)),
    "fit/source-of-floats": case(lambda place: fit(place, source=(PIXELS / 255, LABELS))),
    "fit/source-of-one-array": case(lambda place: fit(place, source=PIXELS)),
    "fit/source-a-loader": case(
        lambda place: fit(place, source=DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4))))
    ),
    "fit/source-a-path": case(lambda place: fit(place, source="images")),
    "fit/source-with-unknown-split": case(lambda place: fit(place, source={"training": (PIXELS, LABELS)})),
    "fit/source-of-two-lengths": case(lambda place: fit(place, source=(PIXELS, LABELS[:9]))),
    "fit/source-of-regression": case(lambda place: fit(place, source=(PIXELS, LABELS / 3))),
    "fit/transform-of-another-dtype": case(
        lambda place: fit(place, {"data": {"augment": {"transforms": [{"_target_": "helpers.message_cases.ToFloat"}]}}})
    ),
    "fit/loss-above-threshold": case(
        lambda place: fit(place, {"trainer": {"divergence_threshold": 1e-3, "log_every": 1}})
    ),
    "assemble/name-taken": case(lambda place: sightline.assemble(tiny(place.path)), a_run()),
    "load/missing": case(lambda place: sightline.load("runs/frist"), a_run()),
    "load/device-unknown": case(lambda place: sightline.load(place.run(), device="gpu")),
    "load/model-of-another-shape": case(lambda place: sightline.load(place.run(), model=linear_network(3))),
    "resume/run-missing": case(lambda place: sightline.resume("runs/first")),
    "resume/parts-missing": case(lambda place: sightline.resume(place.path / "runs" / "first"), a_run(), given("task")),
    "lr_find/low-above-high": case(lambda place: sightline.lr_find(tiny(place.path), low=1.0, high=0.1)),
    "lr_find/unknown-key": case(lambda place: sightline.lr_find({"data": {"bach_size": 8}})),
}
COMPONENTS = {
    "predictor/workers": case(
        lambda place: sightline.Predictor(
            linear_network(), sightline.ModelSpec({}, (1, 8, 8), 2), sightline.Preprocess(8, 8, 1), "ab", workers=0
        )
    ),
    "predictor/image-missing": case(lambda place: sightline.load(place.run()).predict("a.png")),
    "predictor/image-of-floats": case(lambda place: sightline.load(place.run()).predict(np.zeros((8, 8)))),
    "predictor/batch-size": case(lambda place: sightline.load(place.run()).predict("a.png", batch_size=0)),
    "predictor/pixels-of-another-shape": case(
        lambda place: sightline.load(place.run()).probabilities(torch.zeros(2, 1, 9, 9, dtype=torch.uint8))
    ),
    "predictor/values-of-a-classifier": case(
        lambda place: sightline.load(place.run()).values(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    ),
    "trainer/eval-every": case(lambda place: trainer(batches(), eval_every=0)),
    "trainer/task-lacks-methods": case(lambda place: trainer(batches(), task=nn.CrossEntropyLoss())),
    "trainer/no-batches": case(lambda place: trainer([]).fit()),
    "trainer/no-evaluation-batches": case(lambda place: trainer(batches(), evals={"val": []}).fit()),
    "trainer/loss-not-finite": case(lambda place: trainer(batches(x=float("inf"))).fit()),
    "batch-loader/batch-size": case(lambda place: batch_loader(0)),
    "batch-loader/rank": case(lambda place: batch_loader(rank=2, world_size=2)),
    "batch-loader/balanced-without-shuffle": case(lambda place: batch_loader(balanced=True)),
    "batch-loader/drop-last": case(lambda place: batch_loader(64, drop_last=True)),
    "packed-dataset/labels": case(lambda place: batch_loader(dataset=packed(labels=torch.zeros(39)))),
    "packed-dataset/images-of-floats": case(
        lambda place: batch_loader(dataset=packed(images=torch.zeros(40, 1, 8, 8)))
    ),
    "loader-adapter/not-iterable": case(lambda place: LoaderAdapter(3)),
    "loader-adapter/generator-without-length": case(lambda place: LoaderAdapter(iter(batches()))),
    "loader-adapter/too-few-batches": case(lambda place: list(LoaderAdapter([(X, Y)], steps=2))),
    "loader-adapter/batch-of-three": case(lambda place: list(LoaderAdapter([(X, Y, Y, Y)]))),
    "loader-adapter/unknown-keys": case(lambda place: list(LoaderAdapter([{"pixels": X, "answer": Y}]))),
    "loader-adapter/uint8-images": case(lambda place: list(LoaderAdapter([(torch.from_numpy(PIXELS), Y)]))),
    "find-lr/generator": case(lambda place: find(iter(batches()))),
    "find-lr/no-optimizer": case(lambda place: find(optimizer=False)),
    "find-lr/steps": case(lambda place: find(steps=1)),
    "find-lr/loss-not-finite": case(lambda place: find(batches(x=float("nan")))),
}
PARAMS = {
    "params/unknown-key": case(lambda place: by_params(place, batchsize=8)),
    "params/switch": case(lambda place: by_params(place, flip_images="yes")),
    "params/batch-size": case(lambda place: by_params(place, batch_size=0), digits),
    "params/normalisation": case(lambda place: by_params(place, normalise_images=True, normalise_mean=[0.1, 0.2, 0.3])),
    "params/data-missing": case(by_params),
    "params/no-test-images": case(by_params, digits, remove("data/test")),
    "params/classes": case(lambda place: by_params(place, n_classes=5), digits),
    "params/step-not-a-function": case(lambda place: by_params(place, step="train")),
    "params/step-returns-one-number": case(lambda place: by_params(place, step=lambda x, y, model, optim: 0.5), digits),
    "params/optimizer-not-a-class": case(lambda place: by_params(place, optim_class=3), digits),
    "params/schedule-entry": case(lambda place: by_params(place, learning_rate_schedule=[{"cls": 3}]), digits),
    "params/other-settings": case(lambda place: by_params(place, learning_rate=0.2), digits, a_run("params")),
    "params/directory-of-a-learner": case(by_params, digits, a_run("learner")),
    "classifier/layer-does-not-fit": case(lambda place: build_classifier(small(image_height=2))),
    "classifier/two-problems": case(lambda place: build_classifier(small(image_height=2, is_image_color=True))),
    "classifier/not-a-list": case(lambda place: build_classifier(small(net_arch="resnet18"))),
    "classifier/outputs": case(lambda place: build_classifier(small(), outputs="logit")),
    "classifier/channels": case(lambda place: build_classifier(small(is_image_color=True))),
}
LEARNERS = {
    "learner/not-a-network": case(lambda place: tf.StandardModel("resnet18")),
    "learner/epochs": case(lambda place: by_learner(place, epochs=0)),
    "learner/unknown-argument": case(lambda place: by_learner(place, save_model="best")),
    "learner/optimizer": case(lambda place: by_learner(place, optimizer="sgd")),
    "learner/loss": case(lambda place: by_learner(place, loss_fn="mse")),
    "learner/save-models": case(lambda place: by_learner(place, save_models="last")),
    "learner/metric": case(lambda place: by_learner(place, train_metrics=["accuracy"])),
    "learner/metric-of-other-outputs": case(
        lambda place: tf.StandardModel(nn.Linear(FEATURES, 2)).evaluate([(X[:8], X[:8])], [tf.Accuracy()])
    ),
    "learner/schedules": case(lambda place: by_learner(place, lr_schedule=lambda epoch: 0.1, lr_scheduler=object())),
    "learner/batch-not-a-pair": case(lambda place: by_learner(place, train_loader=[X])),
    "learner/batch-empty": case(lambda place: by_learner(place, train_loader=[(X[:0], Y[:0])])),
    "learner/other-settings": case(lambda place: by_learner(place, lr=0.2), a_run("learner")),
    "learner/directory-of-params": case(by_learner, a_run("params")),
    "learner/no-predict-step": case(lambda place: tf.BaseModel(network()).predict(X)),
    "learner/softmax-of-one-output": case(
        lambda place: tf.StandardModel(nn.Linear(FEATURES, 1)).predict(X, apply_softmax=True)
    ),
    "learner/summary": case(
        lambda place: tf.StandardModel(nn.Sequential(nn.Linear(FEATURES, 16), nn.Linear(8, 3))).summary((FEATURES,))
    ),
    "learner/load-other-weights": case(
        lambda place: (
            tf.StandardModel(network(5)).save_model("a.pth"),
            tf.StandardModel(network(3)).load_model("a.pth"),
        )
    ),
}
CALLS = SETTINGS | FITS | COMPONENTS | PARAMS | LEARNERS
PROCESSES = {
    f"process/{name}": COMMANDS[name]
    for name in (
        "command/unknown", "train/option-unknown", "config/unknown-key", "config/unknown-preset", "run/name-taken",
        "runs/directory-missing", "diff/run-damaged", "load/run-missing", "inspect/path-missing", "train/step-fails",
    )
}  # fmt: skip
SECTIONS = (OPTIONS, CONFIG, PARTS, DATA, RUNS, SETTINGS, FITS, COMPONENTS, PARAMS, LEARNERS, PROCESSES)
