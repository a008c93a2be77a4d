"""Malicious models, runs and checkpoints: no code of theirs is executed, nothing is downloaded, no other file is read,
none exhausts memory or time, and each is refused with an error that names it."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import nn

from helpers.commands import python, run_command
from helpers.tampered_artifact import rewrite, with_network, with_weights
from sightline.core.errors import ArtifactError, ConfigError, SightlineError
from sightline.core.files import parse_json, read_json
from sightline.core.yamlfile import read_yaml
from sightline.data.images.preprocess import Preprocess
from sightline.engine.checkpoint.content import read_checkpoint
from sightline.inference.artifact import export_model, load
from sightline.inference.manifest import MANIFEST, WEIGHTS, read_manifest
from sightline.models.spec import ModelSpec
from sightline.report.listing import list_runs
from sightline.runs.directory import Run

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format1"
Damage = Callable[[Path, Path], None]
"""Changes an exported model; its payload would create the second path."""


class Payload:
    """An object whose pickle creates a directory when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a small valid model."""
    run = tmp_path_factory.mktemp("valid") / "run"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    layers = [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 10}]
    spec = ModelSpec({"layers": layers}, (1, 8, 8), 10)
    export_model(run / "exported", model, spec, Preprocess(8, 8, 1), [str(i) for i in range(10)], {"run": "run"})
    return run


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run on the embedded digits."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "original" / "finished"))


@pytest.fixture
def exported(valid: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(valid / "exported", tmp_path / "exported"))


# --- code


def node(target: str, **arguments: Any) -> Callable[[Path], Any]:
    """A network of one node; `{mark}` in its arguments is the path that it would create."""

    def made(mark: Path) -> Any:
        return filled({"_target_": target, **arguments}, mark)

    return made


def filled(value: Any, mark: Path) -> Any:
    if isinstance(value, dict):
        return {key: filled(item, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, mark) for item in value]
    return value.replace("{mark}", str(mark)) if isinstance(value, str) else value


SYSTEM = {"_target_": "os.system", "command": "mkdir {mark}"}
MKDIR = {"_target_": "os.mkdir", "path": "{mark}"}
SPELLINGS = (
    "os.system",
    "posix.system",
    "logging.os.system",
    "shutil.os.system",
    "torch.os.system",
    "torch.nn.modules.module.torch.os.system",
    "torch.nn.modules.module.warnings.sys.modules",
    "torchvision.models._api.sys.modules",
    "sightline.core.files.os.system",
    "sightline.core.locate.importlib.import_module",
    "builtins.exec",
    "builtins.eval",
    "builtins.__import__",
    "subprocess.Popen",
    "subprocess.os.system",
    "importlib.import_module",
    "runpy.run_path",
    "pickle.loads",
    "operator.methodcaller",
    "torch.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.jit.load",
    "torch.classes.load_library",
    "torch.utils.cpp_extension.load",
    "torch.nn.Module.__init__.__globals__.get",
    "sightline.core.locate.instantiate",
    "sightline.models.spec.build_model",
)
NETWORKS: dict[str, Callable[[Path], Any]] = {
    **{f"spelt {name}": node(name, _args_=["mkdir {mark}"]) for name in SPELLINGS},
    "functools.partial": node("functools.partial", _args_=[SYSTEM]),
    "partial": node("os.mkdir", _partial_=True, path="{mark}"),
    "class": lambda mark: filled({"class": "os.mkdir", "kwargs": {"path": "{mark}"}}, mark),
    "in layers": lambda mark: filled({"layers": [{"_target_": "torch.nn.Flatten"}, MKDIR]}, mark),
    "class in layers": lambda mark: filled({"layers": [{"class": "os.mkdir", "kwargs": {"path": "{mark}"}}]}, mark),
    "in arguments": node("torch.nn.Sequential", _args_=[MKDIR]),
    "in a named argument": node("torchvision.models.ResNet", block=MKDIR, layers=[1, 1, 1, 1]),
    "deep inside": node(
        "torch.nn.Sequential", _args_=[{"_target_": "torch.nn.ModuleList", "modules": [[{"a": MKDIR}]]}]
    ),
    "partial inside": node("torchvision.models.ResNet", block={**MKDIR, "_partial_": True}, layers=[1, 1, 1, 1]),
    "timm pretrained": node("timm.create_model", model_name="resnet18", pretrained=True),
    "timm checkpoint": node("timm.create_model", model_name="resnet18", checkpoint_path="{mark}.secret"),
    "timm cfg": node(
        "timm.create_model", model_name="resnet18", pretrained=1, pretrained_cfg={"file": "{mark}.secret"}
    ),
    "timm cfg alone": node("timm.create_model", model_name="resnet18", pretrained_cfg={"file": "{mark}.secret"}),
    "timm local": node("timm.create_model", model_name="local-dir:{mark}.secret"),
    "timm hub": node("timm.create_model", model_name="hf-hub:someone/something"),
    "timm old hub": node("timm.create_model", model_name="hf_hub:someone/something"),
    "timm inside": node("torch.nn.Sequential", _args_=[{"_target_": "timm.create_model", "model_name": "hf-hub:a/b"}]),
    "torchvision weights": node("torchvision.models.resnet18", weights="DEFAULT"),
    "detection, with a backbone": node("torchvision.models.detection.fasterrcnn_resnet50_fpn", num_classes=10),
    "segmentation, with a backbone": node("torchvision.models.segmentation.fcn_resnet50", num_classes=10),
    "torchvision old": node("torchvision.models.resnet18", pretrained=True),
}


def pickled(exported: Path, mark: Path) -> None:
    with_weights(exported, pickle.dumps(Payload(mark)))


def saved_by_torch(exported: Path, mark: Path) -> None:
    file = io.BytesIO()
    torch.save(Payload(mark), file)
    with_weights(exported, file.getvalue())


def pickle_behind_a_header(exported: Path, mark: Path) -> None:
    header = b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    with_weights(exported, struct.pack("<Q", len(header)) + header + pickle.dumps(Payload(mark)))


CODE: dict[str, Damage] = {
    **{name: (lambda folder, mark, made=made: with_network(folder, made(mark))) for name, made in NETWORKS.items()},
    "a pickle": pickled,
    "a file of torch": saved_by_torch,
    "a pickle behind a header": pickle_behind_a_header,
}
WATCHED = """
import json, sys, io, contextlib
import torch, torchvision, timm
import sightline.inference.artifact, sightline.commands.load, sightline.commands.predict, sightline.commands.evaluate
import sightline.compose.assemble
from sightline import cli
seen = []
def watch(event, arguments):
    if event in {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
                 "socket.getaddrinfo", "pickle.find_class"} or (
                 event == "os.mkdir" and "executed" in str(arguments[0])) or (
                 event == "open" and "secret" in str(arguments[0])):
        seen.append([event, str(arguments)[:200]])
for command in json.loads(sys.argv[1]):
    seen.clear()
    if command == json.loads(sys.argv[1])[0]:
        sys.addaudithook(watch)
    out, err = io.StringIO(), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(command)
        except SystemExit as left:
            code = left.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    print(json.dumps([code, out.getvalue(), err.getvalue(), seen[:5]]))
try:  # not ru_maxrss, which counts from the memory of the process that started this one
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except OSError:
    peak = 0
print(peak / 2**20)
"""
"""Runs commands one after the other in one process, and reports the output and the audit events of each."""


def watched(commands: list[list[str]], cwd: Path) -> tuple[list[list[Any]], float]:
    """(exit code, output, errors, events) of each command, and the peak memory of the process in GiB."""
    *lines, memory = python(WATCHED, json.dumps(commands), cwd=cwd).splitlines()
    return [json.loads(line) for line in lines], float(memory)


def check_refused(names: list[str], results: list[list[Any]], mark: Path) -> None:
    for name, (code, out, err, events) in zip(names, results, strict=True):
        assert code == 2, (name, code, err)
        assert out == "", name
        assert err.splitlines()[-1].startswith("sightline: "), (name, err)
        assert "Traceback" not in err, name
        assert MANIFEST in err or WEIGHTS in err or "config.yaml" in err or "module." in err, (name, err)
        assert events == [], (name, events)
    assert not list(mark.parent.glob(f"{mark.name}*"))


@pytest.mark.slow
@pytest.mark.rows("DB4", "X06")
def test_no_model_executes_code(valid: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (tmp_path / "image.png").touch()
    commands = []
    for number, damage in enumerate(CODE.values()):
        folder = Path(shutil.copytree(valid / "exported", tmp_path / str(number)))
        damage(folder, mark)
        commands += [["load", str(folder)], ["predict", str(folder), "image.png"]]
    results, _ = watched(commands, tmp_path)
    check_refused([name for name in CODE for _ in range(2)], results, mark)


STORED = ("loss", "metrics")


@pytest.mark.slow
@pytest.mark.rows("DB4", "X06")
def test_no_run_executes_code_when_it_is_evaluated(finished: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    names, commands = [], []
    for number, target in enumerate((*SPELLINGS, "functools.partial", "torch.nn.Sequential", "torch.optim.SGD")):
        for key in STORED[: 1 + (number % 3 == 0)]:
            run = tmp_path / f"{len(names)}"
            shutil.copytree(finished, run, ignore=shutil.ignore_patterns("checkpoints", "predictions"))
            bad = filled({"_target_": target, "_args_": ["mkdir {mark}"]}, mark)
            if target == "torch.nn.Sequential":
                bad["_args_"] = [filled({"_target_": "os.mkdir", "path": "{mark}"}, mark)]
            config = yaml.safe_load((run / "config.yaml").read_text())
            config["module"][key] = bad if key == "loss" else {"custom": bad}
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            names.append(f"{key}: {target}")
            commands.append(["evaluate", str(run)])
    results, _ = watched(commands, tmp_path)
    for name, (code, _, err, events) in zip(names, results, strict=True):
        assert (code, events) == (2, []), (name, code, err, events)
        assert f"module.{name.partition(':')[0]}" in err, (name, err)
    assert not mark.exists()


@pytest.mark.rows("DB4")
def test_the_command_itself_refuses_and_executes_nothing(exported: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    with_network(exported, filled({"layers": [SYSTEM]}, mark))
    done = run_command("load", exported, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sightline: '{exported / MANIFEST}': model.network: ")
    assert "'os.system' is not on the list of names that a stored model may use" in done.stderr
    pickled(exported, mark)
    done = run_command("predict", exported, exported, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not mark.exists()


def test_a_publishers_network_by_another_name_is_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check for external weights uses the name in the manifest."""
    library = importlib.import_module("timm")
    monkeypatch.setattr("sightline.models.networks.timm", library, raising=False)
    target = "sightline.models.networks.timm.create_model"
    with_network(exported, {"_target_": target, "model_name": "resnet18", "checkpoint_path": str(tmp_path / "x")})
    message = r"sightline\.json' refers to timm\.models\._factory\.create_model by another"
    with pytest.raises(ArtifactError, match=message):
        load(exported)


# --- memory and time

FAR = 10**6
BIG: dict[str, Any] = {
    "linear": {"layers": [{"_target_": "torch.nn.Linear", "in_features": FAR, "out_features": FAR}]},
    "linear that would fit": {
        "layers": [{"_target_": "torch.nn.Linear", "in_features": 40_000, "out_features": 40_000}]
    },
    "beyond any memory": {"layers": [{"_target_": "torch.nn.Linear", "in_features": 2**62, "out_features": 2**62}]},
    "lazy": {"layers": [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.LazyLinear", "out_features": 10**9}]},
    "many layers": {
        "_target_": "torch.nn.Transformer",
        "d_model": 1,
        "nhead": 1,
        "num_encoder_layers": 10**9,
        "dim_feedforward": 1,
    },
    "wide": {"_target_": "sightline.models.networks.SmallCNN", "num_classes": 10, "in_channels": 1, "width": FAR},
    "torchvision": {"_target_": "torchvision.models.resnet18", "num_classes": 10**8},
    "timm": {"_target_": "timm.create_model", "model_name": "resnet18", "num_classes": 10**8},
    "upsampled": {
        "layers": [
            {"_target_": "torch.nn.Upsample", "scale_factor": 10**4},
            {"_target_": "torch.nn.AdaptiveAvgPool2d", "output_size": [8, 8]},
            {"_target_": "torch.nn.Flatten"},
            {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 10},
        ]
    },
}


def with_image_size(side: int) -> Callable[[dict[str, Any]], None]:
    """Changes a manifest to images of that width and height."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["model"]["shape"] = [1, side, side]
        manifest["preprocess"] |= {"height": side, "width": side}

    return change


def test_no_model_takes_far_more_memory_than_its_weights(valid: Path, tmp_path: Path) -> None:
    names, commands = [*BIG, "image size"], []
    for number, network in enumerate(BIG.values()):
        folder = Path(shutil.copytree(valid / "exported", tmp_path / str(number)))
        with_network(folder, network)
        commands.append(["load", str(folder)])
    folder = Path(shutil.copytree(valid / "exported", tmp_path / "image size"))
    rewrite(folder, with_image_size(10**6))
    commands.append(["load", str(folder)])
    results, memory = watched(commands, tmp_path)
    check_refused(names, results, tmp_path / "executed")
    assert memory < 2.5
    assert "far larger than its weights file" in results[0][2]


def header(content: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with that header."""
    text = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F32", shape: str = "[1]", offsets: str = "[0,4]", name: str = "1.weight") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


INVALID_WEIGHTS = {
    "empty": b"",
    "no header": b"\0" * 7,
    "a header longer than the file": header("{}", length=2**40),
    "a negative length": header("{}", length=2**64 - 1),
    "no JSON": header("{{{{"),
    "nested": header("[" * 100_000),
    "offsets beyond the file": header(f"{{{tensor(offsets='[0,400]', shape='[100]')}}}", b"\0" * 4),
    "offsets the wrong way": header(f"{{{tensor(offsets='[4,0]')}}}", b"\0" * 4),
    "overlapping": header(f"{{{tensor()},{tensor(name='1.bias')}}}", b"\0" * 4),
    "a hole": header(f"{{{tensor()},{tensor(name='1.bias', offsets='[8,12]')}}}", b"\0" * 12),
    "no such type": header(f"{{{tensor('F99')}}}", b"\0" * 4),
    "a type that torch lacks": header(f"{{{tensor('F6_E2M3', '[16]', '[0,12]')}}}", b"\0" * 12),
    "a huge shape": header(f"{{{tensor(shape='[1000000,1000000]')}}}", b"\0" * 4),
    "a shape beyond numbers": header(f"{{{tensor(shape='[4294967296,4294967296,4294967296]')}}}", b"\0" * 4),
    "negative": header(f"{{{tensor(shape='[-1]')}}}", b"\0" * 4),
    "a huge shape of nothing": header(f"{{{tensor(shape='[0,1000000000000]', offsets='[0,0]')}}}"),
    "bytes behind it": header(f"{{{tensor()}}}", b"\0" * 400),
    "other names": to_safetensors({"2.weight": torch.zeros(10, 64)}),
    "other shapes": to_safetensors({"1.weight": torch.zeros(10, 65), "1.bias": torch.zeros(10)}),
    "one tensor too many": to_safetensors(
        {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10), "2": torch.zeros(1)}
    ),
    "cut off": to_safetensors({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)})[:-1],
}


@pytest.mark.parametrize("content", INVALID_WEIGHTS.values(), ids=INVALID_WEIGHTS)
def test_invalid_weights_are_refused_by_name(content: bytes, exported: Path) -> None:
    with_weights(exported, content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors'"):
        load(exported)


BOMBS = {
    "nested lists": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "nested and closed": "[" * 5000 + "]" * 5000,
    "a little too deep": '{"format": 2, "x": ' + "[" * 101 + "]" * 101 + "}",
    "an integer": '{"format": 2, "x": ' + "9" * 1_000_000 + "}",
    "a negative number": '{"format": 2, "x": -' + "9" * 1_000_000 + "}",
    "a fraction": '{"format": 2, "x": 0.' + "9" * 1_000_000 + "}",
    "an exponent": '{"format": 2, "x": 1e999999999}',
    "twice": '{"format": 2, "classes": ["a"], "classes": ["b"]}',
    "twice inside": '{"format": 2, "model": {"shape": 1, "shape": 2}}',
    "NaN": '{"format": 2, "x": NaN}',
    "Infinity": '{"format": 2, "x": -Infinity}',
    "a list": "[2]",
    "a word": '"format"',
    "null": "null",
    "nothing": "",
    "another format": '{"format": "2"}',
    "no format": "{}",
    "a truth": '{"format": true}',
    "no checksum": '{"format": 2}',
    "a later one": '{"format": 1000}',
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_malicious_json_is_refused_by_name(text: str, exported: Path) -> None:
    (exported / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"sightline\.json'"):
        load(exported)


def test_json_that_is_too_large_is_not_read(exported: Path) -> None:
    with (exported / MANIFEST).open("wb") as file:
        file.truncate(2**33)  # a hole: it takes no room on the disk
    with pytest.raises(ArtifactError, match=r"sightline\.json' is damaged.*larger than 32 MiB"):
        load(exported)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b'{"a": "\xff"}', b"\x00" * 100], ids=["UTF-16", "UTF-8", "zeros"])
def test_json_that_is_not_text_is_refused_by_name(content: bytes, exported: Path) -> None:
    (exported / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"sightline\.json' is damaged"):
        load(exported)


def replace_with_special_file(kind: str, path: Path) -> None:
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to({"a loop": path, "endless": "/dev/zero", "nothing": "nowhere"}[kind])


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes and devices among the files")
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a loop", "endless", "nothing"])
@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_a_special_file_is_refused_by_name(name: str, kind: str, exported: Path) -> None:
    replace_with_special_file(kind, exported / name)
    with pytest.raises(ArtifactError, match=name):
        load(exported)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes and devices among the files")
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a loop", "endless", "nothing"])
@pytest.mark.parametrize("name", ["config.yaml", "data.json", "environment.json"])
def test_a_run_with_a_special_file_is_listed_as_damaged(name: str, kind: str, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "exported"))
    replace_with_special_file(kind, run / name)
    (record,) = list_runs(tmp_path / "runs").records
    assert record.state == "damaged"
    assert name in record.problems[0]


FORMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "layers of text": lambda m: m["model"].update(network={"layers": "_target_"}),
    "layers of numbers": lambda m: m["model"].update(network={"layers": [1, 2]}),
    "layers of null": lambda m: m["model"].update(network={"layers": None}),
    "a network of text": lambda m: m["model"].update(network="torch.nn.Flatten"),
    "a target that is a list": lambda m: m["model"].update(network={"_target_": ["os.system"]}),
    "no target": lambda m: m["model"].update(network={"a": 1}),
    "arguments of text": lambda m: m["model"].update(network={"_target_": "torch.nn.Linear", "_args_": "ab"}),
    "a model of text": lambda m: m.update(model="x"),
    "no model": lambda m: m.pop("model") and None,
    "no preprocess": lambda m: m.pop("preprocess") and None,
    "no classes": lambda m: m.pop("classes") and None,
    "classes of text": lambda m: m.update(classes="0123456789"),
    "classes of numbers": lambda m: m.update(classes=list(range(10))),
    "no checksum": lambda m: m.update(weights_sha256=["x"]),
    "a shape of fractions": lambda m: m["model"].update(shape=[1, 8.0, 8]),
    "a side of fractions": lambda m: m["preprocess"].update(height=8.0),
    "a side of a truth": lambda m: m["preprocess"].update(channels=True),
    "no side": with_image_size(0),
    "a negative side": with_image_size(-8),
    "five channels": lambda m: m.update(
        preprocess=m["preprocess"] | {"channels": 5}, model=m["model"] | {"shape": [5, 8, 8]}
    ),
    "a mean of lists": lambda m: m["preprocess"].update(mean=[[1]]),
    "a mean of text": lambda m: m["preprocess"].update(mean=["1e999", "nan"]),
    "a resize of lists": lambda m: m["preprocess"].update(resize=[]),
    "an interpolation of objects": lambda m: m["preprocess"].update(interpolation={}),
    "a background of text": lambda m: m["preprocess"].update(background="white"),
    "an unknown key": lambda m: m["preprocess"].update(exec="os.system"),
    "outputs of lists": lambda m: m["model"].update(outputs=[]),
    "a negative number of classes": lambda m: m["model"].update(num_classes=-1),
}


@pytest.mark.parametrize("change", FORMS.values(), ids=FORMS)
def test_a_description_of_another_form_is_refused_by_name(
    change: Callable[[dict[str, Any]], Any], exported: Path
) -> None:
    rewrite(exported, change)
    with pytest.raises(SightlineError, match=r"sightline\.json'"):
        load(exported)


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGES = "a0: &a0 {k: 1, l: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)
)
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))
YAML_BOMBS = {
    "a billion laughs": LAUGHS,
    "a billion merges": MERGES,
    "a chain of aliases": CHAIN,
    "in itself": "a: &a [*a]\n",
    "a key in itself": "a: &a {b: *a}\n",
    "nested lists": "a: " + "[" * 100_000,
    "nested objects": "a: " + "{a: " * 100_000,
    "nested blocks": "".join(" " * i + "a:\n" for i in range(400)),
    "dashes": "a:\n" + "- " * 5000 + "x",
    "a call": "a: !!python/object/apply:os.mkdir [{mark}]\n",
    "an object": "a: !!python/object/new:os.mkdir [{mark}]\n",
    "a module": "a: !!python/module:os\n",
    "a name": "a: !!python/name:os.system\n",
    "a number": "a: " + "9" * 1_000_000 + "\n",
    "a number of base sixty": "a: 1" + ":1" * 500_000 + "\n",
    "a number of base sixteen": "a: 0x" + "f" * 1_000_000 + "\n",
    "a fraction": "a: 1." + "9" * 1_000_000 + "\n",
    "too large": "# " + "x" * (5 * 2**20),
    "no text": "a: \x00",
}


@pytest.mark.parametrize("text", YAML_BOMBS.values(), ids=YAML_BOMBS)
def test_malicious_yaml_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text.replace("{mark}", str(tmp_path / "executed")))
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_yaml(tmp_path / "config.yaml")
    assert not (tmp_path / "executed").exists()


def test_a_run_with_malicious_files_is_listed_and_refused(finished: Path, tmp_path: Path) -> None:
    for name, text in (("laughs", LAUGHS), ("call", "a: !!python/object/apply:os.mkdir [executed]\n")):
        run = tmp_path / "runs" / name
        shutil.copytree(finished, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
        (run / "config.yaml").write_text(text)
        for file in ("data.json", "environment.json"):
            (run / file).write_text("[" * 100_000)
    assert [record.state for record in list_runs(tmp_path / "runs").records] == ["damaged", "damaged"]
    results, _ = watched(
        [[w, str(tmp_path / "runs" / n)] for n in ("laughs", "call") for w in ("evaluate", "resume")], tmp_path
    )
    for code, out, err, events in results:
        assert (code, out, events) == (2, "", []), err
        assert "config.yaml" in err or "environment.json" in err
    assert not (tmp_path / "executed").exists()


# --- names of files


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "..", "a/b", "a\\b", ""])
def test_a_run_name_cannot_be_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.name"):
        Run.create(tmp_path / "runs", name, "x")
    assert [path.name for path in tmp_path.rglob("*") if path.name != "runs"] == []


@pytest.mark.slow
@pytest.mark.rows("DB4", "X06")
def test_the_names_in_a_model_are_not_used_as_paths(finished: Path, tmp_path: Path) -> None:
    """Its run, classes and splits may have any name: no file is written under these names."""
    run = Path(shutil.copytree(finished, tmp_path / "inside" / "run"))
    out = "../../../out"

    def change(manifest: dict[str, Any]) -> None:
        manifest["provenance"]["run"] = out
        manifest["metrics"] = {out: {"accuracy": 1.0}}

    rewrite(run / "exported", change)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["run"] = {"name": out, "dir": str(tmp_path / "elsewhere")}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = sorted(tmp_path.rglob("*"))
    commands = (["load"], ["evaluate"], ["evaluate", "--split", out], ["predict", out])
    results, _ = watched([[first, str(run), *rest] for first, *rest in commands], tmp_path)
    assert [code for code, *_ in results] == [0, 0, 2, 2]
    assert sorted(tmp_path.rglob("*")) == before


# --- checkpoints


def repacked(content: bytes, method: int, grow: int = 0) -> bytes:
    """A checkpoint with its records compressed, and `grow` bytes of zeros behind the first of its tensors."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", method) as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, data + b"\0" * (grow if info.filename.endswith("data/0") else 0))
    return made.getvalue()


def patched(content: bytes, offset_in_directory: int, value: bytes, offset_in_record: int | None = None) -> bytes:
    """The zip with a field of every entry of its directory, and of every record, set to `value`."""
    result = bytearray(content)
    for mark, offset in ((b"PK\1\2", offset_in_directory), (b"PK\3\4", offset_in_record)):
        at = result.find(mark)
        while at >= 0 and offset is not None:
            result[at + offset : at + offset + len(value)] = value
            at = result.find(mark, at + 4)
    return bytes(result)


def huge_tensor(content: bytes) -> bytes:
    """The zip with a pickle that declares a tensor of 10**12 numbers."""
    made = io.BytesIO()
    few, many = b"M\x80\x02", b"\x8a\x06" + (10**12).to_bytes(6, "little")  # 640 in a pickle
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, data.replace(few, many) if info.filename.endswith("data.pkl") else data)
    return made.getvalue()


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """A checkpoint of format 1, which has no checksum that would detect every change."""
    return (FIXTURE / "checkpoints" / "last.ckpt").read_bytes()


ZIPS: dict[str, Callable[[bytes], bytes]] = {
    "compressed": lambda good: repacked(good, zipfile.ZIP_DEFLATED, 200 * 2**20),
    "bzip2": lambda good: repacked(good, zipfile.ZIP_BZIP2),
    "lzma": lambda good: repacked(good, zipfile.ZIP_LZMA),
    "deflate64": lambda good: patched(repacked(good, zipfile.ZIP_DEFLATED), 10, b"\x09\0", 8),
    "an unknown method": lambda good: patched(good, 10, b"\x63\0", 8),
    "encrypted": lambda good: patched(good, 8, b"\1\0", 6),
    "larger than it is": lambda good: patched(good, 24, struct.pack("<I", 2**31), 22),
    "both sizes": lambda good: patched(good, 20, struct.pack("<II", 2**31, 2**31), 18),
    "places beyond the file": lambda good: patched(good, 42, struct.pack("<I", 2**31)),
    "all in one place": lambda good: patched(good, 42, struct.pack("<I", 0)),
    "many numbers": huge_tensor,
    "half": lambda good: good[: len(good) // 2],
    "a tail": lambda good: good[-30:],
    "nothing": lambda good: b"",
}


@pytest.mark.parametrize("damage", ZIPS.values(), ids=ZIPS)
def test_a_malicious_checkpoint_is_refused_by_name(
    damage: Callable[[bytes], bytes], checkpoint: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(damage(checkpoint))
    with pytest.raises(ArtifactError, match=r"last\.ckpt"):
        read_checkpoint(path)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"format": 1, "model": x}, lambda x: [[x]]])
def test_a_checkpoint_runs_no_code(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    path, mark = tmp_path / "last.ckpt", tmp_path / "executed"
    torch.save(wrap(Payload(mark)), path)
    with pytest.raises(ArtifactError, match=r"last\.ckpt"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(wrap(Payload(mark))))
    with pytest.raises(ArtifactError, match=r"last\.ckpt"):
        read_checkpoint(path)
    assert not mark.exists()


# --- valid files


def test_valid_files_are_read(valid: Path, checkpoint: bytes, tmp_path: Path) -> None:
    """Shows that the tests above fail for the reason in their names."""
    assert len(load(valid).classes) == 10
    assert read_manifest(valid / "exported")["format"] == 2
    (tmp_path / "last.ckpt").write_bytes(checkpoint)
    assert read_checkpoint(tmp_path / "last.ckpt")["format"] == 1


def test_deep_and_long_json_is_read_up_to_the_limits(tmp_path: Path) -> None:
    value: Any = 10**127
    for _ in range(100):
        value = [value]
    (tmp_path / "file.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "file.json") == value
    with pytest.raises(ValueError, match="deeper than 100"):
        parse_json(json.dumps([value]))


def test_aliases_are_read_as_long_as_they_are_few(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: &a {b: [1, 2]}\nc: [*a, *a, {<<: *a, d: 3}]\n")
    content = read_yaml(tmp_path / "config.yaml")
    assert content["c"] == [{"b": [1, 2]}, {"b": [1, 2]}, {"b": [1, 2], "d": 3}]
