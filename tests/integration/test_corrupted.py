"""What a disk, a copy or a power cut does to the files of a run: each is noticed and named, or the whole checkpoint
before it is taken with a line that says so; never another error, never silently other weights."""

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


def flipped(draw: random.Random, content: bytes, other: bytes) -> bytes:
    found = bytearray(content)
    for place in draw.sample(range(len(content)), draw.choice((1, 1, 1, 2, 40))):
        found[place] ^= 1 << draw.randrange(8)
    return bytes(found)


def cut(draw: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: draw.choice((0, 1, draw.randrange(len(content)), len(content) - 1))]


def zeroed(draw: random.Random, content: bytes, other: bytes) -> bytes:
    size = draw.choice((16, 512, 4096))
    start = draw.randrange(0, max(len(content) - size, 1))
    return content[:start] + b"\0" * min(size, len(content) - start) + content[start + size :]


def swapped(draw: random.Random, content: bytes, other: bytes) -> bytes:
    return other


def appended(draw: random.Random, content: bytes, other: bytes) -> bytes:
    return content + draw.choice((b"\0", b"x", draw.randbytes(100), content))


def shifted(draw: random.Random, content: bytes, other: bytes) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + draw.choice((b"", b"\0")) + content[place + draw.choice((1, 0)) :] + b"x"


KINDS = (flipped, cut, zeroed, swapped, appended, shifted)


def cases(seed: int, names: tuple[str, ...]) -> list[tuple[int, str, Callable[..., bytes]]]:
    """(a seed, a file, a kind of damage), each kind for each file about as often."""
    pairs = [(name, kind) for kind in KINDS for name in names]
    return [(seed + number, *pairs[number % len(pairs)]) for number in range(CASES)]


def damage(number: int, kind: Callable[..., bytes], path: Path, other: Path) -> None:
    """Writes damaged content to `path`, which is never what was there."""
    content = path.read_bytes()
    draw = random.Random(number)
    while (found := kind(draw, content, other.read_bytes())) == content:
        pass
    path.write_bytes(found)


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
    """The true ones."""
    return {name: value.clone() for name, value in load(runs[0]).model.state_dict().items()}


def same(found: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> bool:
    return found.keys() == true.keys() and all(torch.equal(found[name], true[name]) for name in true)


def attempt(read: Callable[[], Any]) -> Any:
    """What is read, or the error that names what cannot be; any other error is one too many."""
    try:
        return read()
    except ArtifactError as error:
        return error


@pytest.mark.rows("X06")
def test_a_damaged_model_is_refused_by_name(
    runs: tuple[Path, Path], weights: Mapping[str, Tensor], tmp_path: Path
) -> None:
    whole = load(runs[0])
    assert same(whole.model.state_dict(), weights)
    for number, name, kind in cases(1000, (MANIFEST, WEIGHTS)):
        folder = tmp_path / str(number)
        shutil.copytree(runs[0] / "exported", folder)
        damage(number, kind, folder / name, runs[1] / "exported" / name)
        words = (number, name, kind.__name__)
        model = attempt(lambda place=folder: load(place))
        if isinstance(model, ArtifactError):
            named = WEIGHTS if kind is swapped else name  # a whole description of another model fits no weights here
            assert str(folder / named) in str(model), (words, model)
        else:  # JSON has blanks that say nothing, and spells a number in more ways than one
            assert name == MANIFEST, words
            assert model.manifest == whole.manifest, words
            assert same(model.model.state_dict(), weights), words
        shutil.rmtree(folder)


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value at any depth."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in pairs for place in (leaves(item) or [(value, key)])]


@pytest.mark.rows("X06")
def test_no_value_of_a_description_changes_unnoticed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Not a class name, a mean, a key of the config, a metric, nor the checksum itself; as JSON, it is all whole."""
    folder = Path(shutil.copytree(runs[0] / "exported", tmp_path / "exported"))
    text = (folder / MANIFEST).read_text()
    for number in range(len(leaves(json.loads(text)))):
        manifest = json.loads(text)
        container, key = leaves(manifest)[number]
        old = container[key]
        is_number = isinstance(old, int | float) and not isinstance(old, bool)
        container[key] = f"{old}x" if isinstance(old, str) else old + 1 if is_number else not old
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
        with pytest.raises(ArtifactError, match=r"sightline\.json' is (damaged|of format 3)"):
            read_manifest(folder)
    (folder / MANIFEST).write_text(json.dumps(json.loads(text)))  # another spelling of the same is the same
    read_manifest(folder)


@pytest.mark.rows("X06")
def test_a_damaged_checkpoint_is_refused_by_name(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for number, name, kind in cases(2000, ("last.ckpt", "best.ckpt")):
        if kind is swapped:  # it is whole, and of another run: see below
            continue
        path = tmp_path / name
        shutil.copy(runs[0] / "checkpoints" / name, path)
        damage(number, kind, path, runs[1] / "checkpoints" / name)
        found = attempt(lambda place=path: read_checkpoint(place))
        assert isinstance(found, ArtifactError), (number, name, kind.__name__)
        assert str(path) in str(found), (number, name, kind.__name__, found)


KEPT = ("config.yaml", "data.json", "environment.json", "log.jsonl", "checkpoints", "exported", "images.csv.gz")


def copied(run: Path, place: Path) -> Path:
    """What a run is resumed from."""
    place.mkdir()
    for name in KEPT:
        if (run / name).is_dir():
            shutil.copytree(run / name, place / name)
        elif (run / name).exists():
            shutil.copy(run / name, place / name)
    return place


def resumed(run: Path) -> Mapping[str, Tensor] | ArtifactError:
    """The state that a run would go on with, or why it does not."""
    assembly = attempt(lambda: sightline.resume(run))
    if isinstance(assembly, ArtifactError):
        return assembly
    if assembly.trainer.recorder is not None:
        assembly.trainer.recorder.close()
    state = assembly.trainer.state
    return {**state.model.state_dict(), "step": torch.tensor(state.step)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_run_is_never_resumed_from_other_weights(
    kind: Callable[..., bytes], runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = sorted(path for path in (runs[0] / "checkpoints").iterdir() if path.is_file())
    known = [content for path in checkpoints if (content := read_checkpoint(path))]
    for number in range(3):
        run = copied(runs[0], tmp_path / str(number))
        damage(number, kind, run / "checkpoints" / "last.ckpt", runs[1] / "checkpoints" / "last.ckpt")
        capsys.readouterr()
        found = resumed(run)
        told = capsys.readouterr()
        if isinstance(found, ArtifactError):
            assert "last.ckpt" in str(found), found
            continue
        step = int(found["step"])
        assert "last.ckpt" in told.err + told.out, (number, told)
        (true,) = [content for content in known if content["step"] == step][:1]
        assert all(torch.equal(found[name], value) for name, value in true["model"].items())


def test_the_best_of_another_run_is_not_exported(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A checkpoint that is whole says whose it is."""
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


def test_every_kind_of_damage_is_done(tmp_path: Path) -> None:
    """So that the tests above try what they say."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "b").write_bytes(b"other")
    seen: dict[str, Any] = {}
    for number, kind in enumerate(KINDS):
        shutil.copy(tmp_path / "a", tmp_path / "c")
        damage(number, kind, tmp_path / "c", tmp_path / "b")
        seen[kind.__name__] = (tmp_path / "c").read_bytes()
    assert len(set(seen.values()) | {(tmp_path / "a").read_bytes()}) == len(KINDS) + 1
