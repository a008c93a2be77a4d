"""Runs and their exported models: the same config gives the same bits, and the artifact is complete, loads without the
code or the data that made it, and executes no code that it contains."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

import sightline
from helpers.commands import python
from helpers.tampered_artifact import rewrite, with_network
from sightline.config.typed import merge
from sightline.core.errors import ArtifactError, ConfigError, DataError, ModelError, SightlineError
from sightline.core.files import sha256
from sightline.data.sources.open import open_source
from sightline.engine.trainer import Trainer
from sightline.inference.artifact import export_model, load
from sightline.inference.evaluate import per_sample_loss
from sightline.models.losses import FocalLoss
from sightline.runs.directory import Run
from sightline.runs.recorders import JsonlRecorder

QUICK = {"trainer": {"max_epochs": 1, "progress": False}, "module": {"network": {"width": 4}}}


def quick(folder: Path, **changes: Any) -> dict[str, Any]:
    return merge({**QUICK, "run": {"dir": str(folder)}}, changes)


def test_the_same_config_gives_the_same_weights(tmp_path: Path) -> None:
    first, second, other = (
        sightline.fit(quick(tmp_path, seed=seed, run={"name": name})) for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    digests = [sha256(tmp_path / name / "exported" / "model.safetensors") for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    assert first.history == second.history != other.history
    assert first.metrics == second.metrics


def test_a_config_is_a_dict_a_file_or_an_object(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("seed: 3\nmodule: {optimizer: {lr: 1e-3}}\n")
    from sightline.compose.assemble import as_config

    config = as_config(file)
    assert config.seed == 3
    assert config.module.optimizer == {"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.01}
    assert as_config(config.to_dict()) == config == as_config(str(file))
    with pytest.raises(ConfigError, match=r"the config file 'mnist' does not exist.*experiment=mnist --cfg job"):
        as_config("mnist")


@pytest.mark.rows("D04", "DB1", "D06", "AB12")
def test_a_module_of_targets_trains(tmp_path: Path) -> None:
    """Network, loss, optimiser and scheduler by `_target_`; the scheduler gets its optimiser, and
    ReduceLROnPlateau its metric and direction."""
    module = {
        "network": {"_target_": "sightline.models.networks.SmallCNN", "width": 4},
        "loss": {"_target_": "sightline.models.losses.FocalLoss", "gamma": 2},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
        "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"},
        "monitor": "val_accuracy",
    }
    assembly = sightline.assemble(quick(tmp_path) | {"module": module})
    assert isinstance(assembly.trainer.state.optimizer, torch.optim.Adam)
    assert assembly.trainer.state.optimizer.defaults["weight_decay"] == 0  # no default of the other class remains
    (schedule,) = assembly.trainer.state.schedules
    assert (schedule.interval, schedule.monitor, schedule.scheduler.mode) == ("epoch", "val_accuracy", "max")
    assert assembly.fit().best == max(record["val_accuracy"] for record in assembly.trainer.state.history)


class Arrays:
    """A custom source: two classes of uniform squares, dark and bright."""

    info = sightline.data.records.DataInfo("squares", ("dark", "bright"))

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        levels = {"train": 40, "val": 10, "test": 10}
        self.splits = {
            split: [
                sightline.data.records.Sample(
                    f"{split}-{i}", generator.integers(0, 100, (8, 8), dtype=np.uint8) + np.uint8(i % 2 * 150), i % 2
                )
                for i in range(n)
            ]
            for split, n in levels.items()
        }


def test_parts_passed_in_are_used(tmp_path: Path) -> None:
    """Source, model, loss, optimiser, callback and recorder are passed in; the rest comes from the config."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen: list[str] = []

    class Watch(sightline.Callback):
        def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
            seen.append("epoch")

    class Note:
        def log(self, step: int, values: Any) -> None:
            seen.append("log")

        def close(self) -> None:
            seen.append("closed")

    result = sightline.fit(
        quick(tmp_path, trainer={"max_epochs": 3}) | {"module": {"lr_scheduler": None}},
        source=Arrays(),
        model=model,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer=optimizer,
        callbacks=[Watch()],
        recorder=Note(),
    )
    assert result.metrics["test"]["accuracy"] == 1
    assert seen == ["log", "epoch"] * 3 + ["closed"]
    assert result.run is not None
    with pytest.raises(ModelError, match=r"passed in as an object; pass the same network as model="):
        load(result.run)
    predictor = load(result.run, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    assert predictor.predict(np.full((8, 8), 240, dtype=np.uint8))[0].label == "bright"
    with pytest.raises(TypeError, match="optimizer: it has parameters that are not the model's"):
        sightline.assemble(quick(tmp_path), optimizer=optimizer)
    with pytest.raises(TypeError, match=r"'optimiser' cannot be passed in. Did you mean 'optimizer'\?"):
        sightline.assemble(quick(tmp_path), optimiser=optimizer)


def test_the_predictor_takes_files_bytes_pixels_and_pillow_images(digits_run: Path, tmp_path: Path) -> None:
    predictor = sightline.load(digits_run)
    pixels = np.round(load_digits().images[0] * (255 / 16)).astype(np.uint8)
    file = tmp_path / "zero.png"
    Image.fromarray(pixels).save(file)
    answers = predictor.predict(
        [file, str(file), file.read_bytes(), pixels, pixels[..., None], Image.fromarray(pixels)]
    )
    assert {answer.label for answer in answers} == {"0"}
    assert len({answer.probabilities for answer in answers}) == 1
    assert predictor.predict(pixels)[0].label == "0"
    with pytest.raises(DataError, match=r"'nothing\.png'"):
        predictor.predict("nothing.png")
    with pytest.raises(ValueError, match="expected uint8"):
        predictor.probabilities(torch.zeros((1, 1, 8, 8)))


@pytest.mark.rows("X02")
def test_prediction_equals_evaluation(digits_run: Path) -> None:
    """The same images through `predict` and through `evaluate`: equal bits for equal batch shapes, otherwise equal
    labels and probabilities within 1e-6."""
    predictor = sightline.load(digits_run)
    rows = (digits_run / "predictions" / "test.csv").read_text().splitlines()[1:]
    written = {row.split(",")[0]: row.split(",") for row in rows}
    source = open_source("digits")
    samples = [sample for part in source.splits.values() for sample in part if sample.id in written]
    assert len(samples) == len(written) == 359
    equal = predictor.predict([sample.image for sample in samples], batch_size=256)
    single = [predictor.predict(sample.image)[0] for sample in samples[:50]]
    for sample, answer in zip(samples, equal, strict=True):
        assert [f"{p:.9g}" for p in answer.probabilities] == written[sample.id][5:]
    for answer, alone in zip(equal, single, strict=False):
        assert answer.label == alone.label
        assert np.allclose(answer.probabilities, alone.probabilities, atol=1e-6, rtol=0)


def test_the_artifact_predicts_without_its_run(digits_run: Path, tmp_path: Path) -> None:
    """The exported folder alone, in a process that cannot open a connection, gives the same prediction."""
    exported = shutil.copytree(digits_run / "exported", tmp_path / "model")
    expected = sightline.load(digits_run).predict(np.zeros((8, 8), dtype=np.uint8))[0]
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "import numpy as np, sightline\n"
        "answer = sightline.load(sys.argv[1]).predict(np.zeros((8, 8), dtype=np.uint8))[0]\n"
        "print(answer.label, repr(answer.confidence))"
    )
    assert python(code, str(exported), cwd=tmp_path).split() == [expected.label, repr(expected.confidence)]


def test_weights_are_safetensors_of_the_best_epoch(digits_run: Path) -> None:
    stored = load_file(digits_run / "exported" / "model.safetensors")
    best = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)["model"]
    assert stored.keys() == best.keys()
    assert all(torch.equal(stored[name], best[name]) for name in stored)


@pytest.fixture
def artifact(digits_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits_run, tmp_path / "run")


def change(artifact: Path, **values: Any) -> None:
    rewrite(artifact / "exported", lambda manifest: merge(manifest, values))


def test_a_changed_or_missing_file_is_refused(artifact: Path) -> None:
    weights = artifact / "exported" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        load(artifact)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors' is missing"):
        load(artifact)
    (artifact / "exported" / "sightline.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"sightline\.json' is damaged"):
        load(artifact)
    with pytest.raises(ArtifactError, match="there is no run"):
        load(artifact / "nowhere")
    shutil.rmtree(artifact / "exported")
    with pytest.raises(ArtifactError, match="Has the run finished"):
        load(artifact)


def test_an_artifact_of_a_later_format_is_refused(artifact: Path) -> None:
    change(artifact, format=4)
    with pytest.raises(ArtifactError, match="of format 4; this version of Sightline reads the formats 1, 2, 3"):
        load(artifact)


@pytest.mark.rows("DB4")
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "torch.hub.load",
        "torch.nn.modules.utils.os.system",
        "torch.utils.data.os.system",
        "torch.nn.functional.os.system",
        "logging.os.system",
        "sightline.inference.artifact.os.system",
        "sightline.core.locate.importlib.import_module",
        "torch.load",
    ],
)
def test_an_artifact_cannot_name_other_code(target: str, artifact: Path, tmp_path: Path) -> None:
    """In any spelling: the module that defines the object decides."""
    mark = tmp_path / "executed"
    change(artifact, model={"network": {"_target_": target, "_args_": [f"touch {mark}"]}})
    with pytest.raises(ConfigError, match=r"is not on the list|has no attribute '"):
        load(artifact)
    nested = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": target, "_args_": [f"touch {mark}"]}]}
    change(artifact, model={"network": nested})
    with pytest.raises(ConfigError, match=r"is not on the list|has no attribute '"):
        load(artifact)
    assert not mark.exists()


@pytest.mark.parametrize(
    "network",
    [
        {"_target_": "timm.create_model", "model_name": "resnet18", "pretrained": True},
        {"_target_": "timm.create_model", "model_name": "hf-hub:someone/something"},
        {"layers": [{"_target_": "timm.create_model", "model_name": "hf-hub:someone/something"}]},
        {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": "/etc/passwd"},
        {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"},
        {"layers": [{"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}]},
    ],
)
def test_an_artifact_cannot_ask_for_other_weights(network: dict[str, Any], artifact: Path) -> None:
    change(artifact, model={"network": network})
    with pytest.raises(ArtifactError, match=r"requests a download of weights|names the remote model"):
        load(artifact)


@pytest.mark.parametrize(
    "network",
    [
        {"_target_": "torchvision.models.squeezenet1_1", "num_classes": "auto"},
        {"_target_": "timm.create_model", "model_name": "test_vit", "num_classes": "auto", "img_size": "auto"},
        {"layers": [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.LazyLinear", "out_features": "auto"}]},
    ],
)
def test_library_networks_train_and_load_again(network: dict[str, Any], tmp_path: Path) -> None:
    if "layers" not in network:
        importlib.import_module(network["_target_"].partition(".")[0])
    else:
        network["layers"][1] = {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": "auto"}
    config = {
        "run": {"dir": str(tmp_path), "name": "library"},
        "data": {"preprocess": {"size": 32, "channels": 3}, "val": 20, "test": 1700},
        "module": {"network": network},
        "trainer": {"max_epochs": 1, "progress": False},
    }
    result = sightline.fit(config)
    predictor = sightline.load(tmp_path / "library")
    assert predictor.preprocess.shape == (3, 32, 32)
    assert result.metrics == predictor.manifest["metrics"]


@pytest.mark.rows("AB7")
def test_cross_entropy_over_probabilities_warns(tmp_path: Path) -> None:
    layers = [
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": "auto", "out_features": "auto"},
        {"_target_": "torch.nn.Softmax", "dim": 1},
    ]
    config = quick(tmp_path, module={"network": {"layers": layers}})
    config["module"]["network"].pop("width", None)
    with pytest.warns(UserWarning, match="The network ends in a softmax and the loss is cross entropy"):
        assembly = sightline.assemble(config)
    assert assembly.spec.outputs == "probabilities"
    assembly.trainer.recorder.close()  # type: ignore[union-attr]
    config["module"]["loss"] = {"_target_": "sightline.models.losses.ProbabilityNLL"}
    result = sightline.fit(config)
    assert result.run is not None
    probabilities = sightline.load(result.run).predict(np.zeros((8, 8), dtype=np.uint8))[0].probabilities
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_per_sample_losses_average_to_the_loss() -> None:
    torch.manual_seed(0)
    output, target = torch.randn(20, 5), torch.randint(0, 5, (20,))
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), FocalLoss(2.0), nn.MultiMarginLoss()):
        single = per_sample_loss(loss, output, target)
        assert single.shape == (20,)
        assert single.mean().item() == pytest.approx(loss(output, target).item(), rel=1e-5)
        assert getattr(loss, "reduction", "mean") == "mean"
    plain = per_sample_loss(nn.functional.cross_entropy, output, target)
    assert torch.allclose(plain, nn.functional.cross_entropy(output, target, reduction="none"))


def test_an_export_that_fails_writes_nothing(tmp_path: Path, digits_run: Path) -> None:
    predictor = sightline.load(digits_run)
    target = tmp_path / "exported"
    arguments = (predictor.model, predictor.spec, predictor.preprocess, predictor.classes)
    with pytest.raises(TypeError):
        export_model(target, *arguments, {"not": object()})
    assert list(tmp_path.iterdir()) == []
    export_model(target, *arguments, {})
    before = sha256(target / "sightline.json")
    with pytest.raises(TypeError):
        export_model(target, *arguments, {"not": object()})
    assert sha256(target / "sightline.json") == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_resumed_log_has_each_step_once(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    first = JsonlRecorder()
    first.start(tmp_path, {}, None)
    for step in (1, 2, 3):
        first.log(step, {"loss": float("nan") if step == 1 else 0.5})
    first.close()
    with file.open("a") as stream:
        stream.write('{"step": 4, "lo')  # killed in the middle of a line
    second = JsonlRecorder()
    second.start(tmp_path, {}, (2, 0))
    second.log(3, {"loss": 0.25})
    second.close()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, None), (2, 0.5), (3, 0.25)]


def test_runs_never_share_a_directory(tmp_path: Path) -> None:
    def fill(run: Run) -> None:
        assert run.path.name.startswith(".run."), "the directory has its final name before its files are written"
        run.write_config({"seed": 1})

    paths = {Run.create(tmp_path, None, "digits", fill).path for _ in range(5)}
    assert len(paths) == 5
    (tmp_path / "mine").mkdir()  # an empty directory is not a run
    Run.create(tmp_path, "mine", "digits", fill)
    with pytest.raises(ConfigError, match="exists, and a run is never overwritten"):
        Run.create(tmp_path, "mine", "digits", fill)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_run_whose_first_files_cannot_be_written_is_deleted(tmp_path: Path) -> None:
    def fail(run: Run) -> None:
        run.write_config({"seed": 1})
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"run\.dir: cannot create a directory in .*No space left"):
        Run.create(tmp_path, "mine", "digits", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rows("AB10")
def test_only_training_images_are_augmented(tmp_path: Path) -> None:
    assembly = sightline.assemble(quick(tmp_path, data={"augment": {"flip": 0.5, "vertical_flip": 0.5, "shift": 2}}))
    assembly.trainer.recorder.close()  # type: ignore[union-attr]
    assert len(assembly.trainer.train.augment) == 3  # type: ignore[attr-defined]
    val = assembly.trainer.evals["val"]
    assert val.augment == ()  # type: ignore[attr-defined]
    pixels = torch.cat([batch.x for batch in val])  # type: ignore[misc]
    shown = assembly.data["val"].pixels(range(len(assembly.data["val"])))
    assert torch.equal(pixels, assembly.preprocess.normalizer()(shown))
    assert set(assembly.trainer.evals) == {"val"}  # the test split is evaluated once, after training


def test_an_argument_called_weights_is_passed_to_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for timm and torchvision do these arguments request a download, which an export must leave out."""
    (tmp_path / "weighted.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, weights, pretrained=True):\n"
        "        assert pretrained\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, weights), nn.Linear(weights, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = quick(tmp_path) | {"module": {"network": {"_target_": "weighted.Net", "weights": 12}}}
    result = sightline.fit(config)
    assert result.run is not None
    assert load(result.run, allow=("weighted",)).model[1].out_features == 12  # type: ignore[index,union-attr]


def test_a_mask_of_minus_infinity_is_not_a_broken_weight(tmp_path: Path) -> None:
    class Masked(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, 10))
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    assert sightline.fit(quick(tmp_path) | {"module": {}}, model=Masked()).run is not None


def test_parts_passed_in_must_be_passed_in_again_to_resume(tmp_path: Path) -> None:
    config = quick(tmp_path, run={"name": "passed"})
    loss = nn.CrossEntropyLoss(label_smoothing=0.5)
    sightline.fit(config, loss=loss)
    with pytest.raises(ArtifactError, match=r"started with parts passed in from Python: loss.*loss=…"):
        sightline.resume(tmp_path / "passed")
    assert sightline.resume(tmp_path / "passed", loss=loss).fit().steps == 20


def test_a_config_that_was_edited_afterwards_is_not_resumed(artifact: Path) -> None:
    text = (artifact / "config.yaml").read_text()
    (artifact / "config.yaml").write_text(
        text.replace("lr: 0.003", "lr: 0.9").replace("batch_size: 64", "batch_size: 32")
    )
    message = r"data\.batch_size was 64 and is now 32; module\.optimizer\.lr was 0\.003 and is now 0\.9"
    with pytest.raises(ArtifactError, match=message):
        sightline.resume(artifact)
    (artifact / "config.yaml").write_text(text.replace("log_every: 50", "log_every: 7"))
    sightline.resume(artifact)


def test_only_one_process_trains_a_run(artifact: Path) -> None:
    from sightline.core.files import locked

    with locked(artifact) as acquired:
        assert acquired
        log = (artifact / "log.jsonl").read_text()
        with pytest.raises(ArtifactError, match="is being trained by another process"):
            sightline.resume(artifact).fit()
        assert (artifact / "log.jsonl").read_text() == log
    sightline.resume(artifact).fit()


def test_a_second_export_keeps_what_the_user_put_beside_it(artifact: Path) -> None:
    (artifact / "exported" / "README.txt").write_text("mine")
    sightline.resume(artifact).fit()
    assert (artifact / "exported" / "README.txt").read_text() == "mine"
    assert not list(artifact.glob(".exported*"))


@pytest.mark.parametrize(
    "values",
    [
        {"weights_sha256": None, "model": {"network": None}},
        {"preprocess": {"mean": ["a"]}},
        {"preprocess": {"resize": "melt"}},
        {"model": {"shape": None}},
        {"classes": ["0", "1"]},
        {"preprocess": {"height": 9}},
    ],
)
def test_a_damaged_manifest_is_refused(values: dict[str, Any], artifact: Path) -> None:
    change(artifact, **values)
    with pytest.raises(ArtifactError, match=r"sightline\.json' is damaged"):
        load(artifact)


@pytest.mark.rows("DB4")
@pytest.mark.parametrize(
    "network",
    [
        {"_target_": "timm.create_model", "_args_": ["resnet18", True]},
        {"_target_": "timm.create_model", "_args_": ["resnet18", False, None, None, "/etc/passwd"]},
        {"class": "timm.create_model", "kwargs": {"model_name": "hf-hub:someone/something"}},
    ],
)
def test_a_stored_model_must_pass_its_arguments_by_name(network: dict[str, Any], artifact: Path) -> None:
    with_network(artifact / "exported", network)
    with pytest.raises(
        SightlineError, match=r"must pass the arguments of 'timm\.create_model' by name|has a node with 'class'"
    ):
        load(artifact)
