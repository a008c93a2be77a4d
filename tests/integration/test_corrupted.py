"""Damaged files of a run, as a disk, a copy or a power cut damages them.

The error names the file, or the run resumes from the valid checkpoint before it with a message. No other exception is
raised, and no other weights are used silently."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sightline
from helpers.commands import Command
from sightline.core.errors import ArtifactError
from sightline.engine.checkpoint.content import read_checkpoint
from sightline.inference.artifact import load
from sightline.inference.manifest import MANIFEST, WEIGHTS, read_manifest

CASES = 100


def flipped(rng: random.Random, content: bytes, other: bytes) -> bytes:
    damaged = bytearray(content)
    for position in rng.sample(range(len(content)), rng.choice((1, 1, 1, 2, 40))):
        damaged[position] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: rng.choice((0, 1, rng.randrange(len(content)), len(content) - 1))]


def zeroed(rng: random.Random, content: bytes, other: bytes) -> bytes:
    size = rng.choice((16, 512, 4096))
    start = rng.randrange(0, max(len(content) - size, 1))
    return content[:start] + b"\0" * min(size, len(content) - start) + content[start + size :]


def swapped(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return other


def appended(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content + rng.choice((b"\0", b"x", rng.randbytes(100), content))


def shifted(rng: random.Random, content: bytes, other: bytes) -> bytes:
    position = rng.randrange(len(content))
    return content[:position] + rng.choice((b"", b"\0")) + content[position + rng.choice((1, 0)) :] + b"x"


KINDS = (flipped, cut, zeroed, swapped, appended, shifted)


def cases(seed: int, names: tuple[str, ...]) -> list[tuple[int, str, Callable[..., bytes]]]:
    """(seed, file name, kind of damage) of each case; each kind is used for each file about equally often."""
    pairs = [(name, kind) for kind in KINDS for name in names]
    return [(seed + number, *pairs[number % len(pairs)]) for number in range(CASES)]


def damage(number: int, kind: Callable[..., bytes], path: Path, other: Path) -> None:
    """Writes damaged content to `path`, always different from the content before."""
    content = path.read_bytes()
    rng = random.Random(number)
    while (damaged := kind(rng, content, other.read_bytes())) == content:
        pass
    path.write_bytes(damaged)


def make(folder: Path, seed: int) -> Path:
    """A run on the embedded digits, small and short, with a checkpoint before its last one."""
    config = {
        "seed": seed,
        "run": {"dir": str(folder), "name": f"run{seed}"},
        "module": {"network": {"width": 4}},
        "trainer": {"max_epochs": 2, "progress": False},
    }
    result = sightline.fit(config)
    assert result.run is not None
    return result.run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that differ in their seed alone, so that their files are of the same kinds and sizes."""
    folder = tmp_path_factory.mktemp("runs")
    return make(folder, 0), make(folder, 1)


@pytest.fixture(scope="module")
def weights(runs: tuple[Path, Path]) -> Mapping[str, Tensor]:
    """The weights of the first run, undamaged."""
    return {name: value.clone() for name, value in load(runs[0]).model.state_dict().items()}


def same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


def attempt(read: Callable[[], Any]) -> Any:
    """Returns what `read` returns, or its ArtifactError; any other exception fails the test."""
    try:
        return read()
    except ArtifactError as error:
        return error


@pytest.mark.rows("X06")
def test_a_damaged_model_is_refused_by_name(
    runs: tuple[Path, Path], weights: Mapping[str, Tensor], tmp_path: Path
) -> None:
    undamaged = load(runs[0])
    assert same(undamaged.model.state_dict(), weights)
    for number, name, kind in cases(1000, (MANIFEST, WEIGHTS)):
        folder = tmp_path / str(number)
        shutil.copytree(runs[0] / "exported", folder)
        damage(number, kind, folder / name, runs[1] / "exported" / name)
        case = (number, name, kind.__name__)
        model = attempt(lambda path=folder: load(path))
        if isinstance(model, ArtifactError):
            named = WEIGHTS if kind is swapped else name  # a valid manifest of another model: the weights differ
            assert str(folder / named) in str(model), (case, model)
        else:  # blanks in JSON have no meaning, and a number has several spellings
            assert name == MANIFEST, case
            assert model.manifest == undamaged.manifest, case
            assert same(model.model.state_dict(), weights), case
        shutil.rmtree(folder)


def value_positions(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value at any depth."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [position for key, item in pairs for position in (value_positions(item) or [(value, key)])]


@pytest.mark.rows("X06")
def test_every_changed_value_of_a_manifest_is_noticed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Class names, means, keys of the config, metrics, and the checksum itself; every changed file is valid JSON."""
    folder = Path(shutil.copytree(runs[0] / "exported", tmp_path / "exported"))
    text = (folder / MANIFEST).read_text()
    for number in range(len(value_positions(json.loads(text)))):
        manifest = json.loads(text)
        container, key = value_positions(manifest)[number]
        old = container[key]
        is_number = isinstance(old, int | float) and not isinstance(old, bool)
        container[key] = f"{old}x" if isinstance(old, str) else old + 1 if is_number else not old
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
        with pytest.raises(ArtifactError, match=r"sightline\.json' is (damaged|of format 3)"):
            read_manifest(folder)
    (folder / MANIFEST).write_text(json.dumps(json.loads(text)))  # the same values in another spelling are valid
    read_manifest(folder)


@pytest.mark.rows("X06")
def test_a_damaged_checkpoint_is_refused_by_name(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for number, name, kind in cases(2000, ("last.ckpt", "best.ckpt")):
        if kind is swapped:  # a valid checkpoint of another run: see below
            continue
        path = tmp_path / name
        shutil.copy(runs[0] / "checkpoints" / name, path)
        damage(number, kind, path, runs[1] / "checkpoints" / name)
        error = attempt(lambda file=path: read_checkpoint(file))
        assert isinstance(error, ArtifactError), (number, name, kind.__name__)
        assert str(path) in str(error), (number, name, kind.__name__, error)


RESUME_FILES = ("config.yaml", "data.json", "environment.json", "log.jsonl", "checkpoints", "exported", "images.csv.gz")


def copied(run: Path, folder: Path) -> Path:
    """Copies the files that a run is resumed from."""
    folder.mkdir()
    for name in RESUME_FILES:
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / name)
        elif (run / name).exists():
            shutil.copy(run / name, folder / name)
    return folder


def resumed(run: Path) -> Mapping[str, Tensor] | ArtifactError:
    """The state from which a run would resume, or the error."""
    assembly = attempt(lambda: sightline.resume(run))
    if isinstance(assembly, ArtifactError):
        return assembly
    if assembly.trainer.recorder is not None:
        assembly.trainer.recorder.close()
    state = assembly.trainer.state
    return {**state.model.state_dict(), "step": torch.tensor(state.step)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_run_is_never_resumed_from_other_weights(
    kind: Callable[..., bytes], runs: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = sorted(path for path in (runs[0] / "checkpoints").iterdir() if path.is_file())
    known = [content for path in checkpoints if (content := read_checkpoint(path))]
    for number in range(3):
        run = copied(runs[0], tmp_path / str(number))
        damage(number, kind, run / "checkpoints" / "last.ckpt", runs[1] / "checkpoints" / "last.ckpt")
        caplog.clear()
        state = resumed(run)
        if isinstance(state, ArtifactError):
            assert "last.ckpt" in str(state), state
            continue
        step = int(state["step"])
        assert "last.ckpt" in caplog.text, number
        (expected,) = [content for content in known if content["step"] == step][:1]
        assert all(torch.equal(state[name], value) for name, value in expected["model"].items())


def test_the_best_of_another_run_is_not_exported(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A valid checkpoint names the run that wrote it."""
    run = copied(runs[0], tmp_path / "run")
    shutil.rmtree(run / "exported")
    shutil.copy(runs[1] / "checkpoints" / "best.ckpt", run / "checkpoints" / "best.ckpt")
    with pytest.raises(ArtifactError, match=r"best\.ckpt"):
        sightline.resume(run).fit()
    assert not (run / "exported").exists()


@pytest.mark.parametrize("kind", [flipped, cut], ids=lambda kind: kind.__name__)
def test_the_command_shows_no_traceback(
    kind: Callable[..., bytes], runs: tuple[Path, Path], tmp_path: Path, here: Command
) -> None:
    run = copied(runs[0], tmp_path / "run")
    damage(7, kind, run / "exported" / WEIGHTS, runs[1] / "exported" / WEIGHTS)
    done = here("load", run)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sightline: ")
    assert str(run / "exported" / WEIGHTS) in done.stderr
    for path in (run / "checkpoints").iterdir():
        damage(7, kind, path, path)
    done = here("resume", run)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    assert ".ckpt" in done.stderr


def test_every_kind_of_damage_changes_the_file(tmp_path: Path) -> None:
    """Checks the damage functions of the tests above."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "b").write_bytes(b"other")
    seen: dict[str, Any] = {}
    for number, kind in enumerate(KINDS):
        shutil.copy(tmp_path / "a", tmp_path / "c")
        damage(number, kind, tmp_path / "c", tmp_path / "b")
        seen[kind.__name__] = (tmp_path / "c").read_bytes()
    assert len(set(seen.values()) | {(tmp_path / "a").read_bytes()}) == len(KINDS) + 1
