"""`sightline load RUN`: check an exported model, and say what it is."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.commands.options import add_model_options
from sightline.core.errors import ArtifactError, join_names

if TYPE_CHECKING:
    from sightline.inference.predictor import Predictor


def main(argv: Sequence[str]) -> int:
    """Loads the model as `predict` does, with every check, lets it answer once, and prints what it is."""
    options = argparse.ArgumentParser(
        "sightline load", description="Check an exported model and say what it is.", allow_abbrev=False
    )
    options.add_argument("run", metavar="RUN", help="a run's directory, or its exported folder")
    options.add_argument("--json", action="store_true", help="all of it as JSON, with the whole provenance")
    add_model_options(options)
    found = options.parse_args(argv)
    from sightline.runs.directory import Run

    path = Path(found.run)
    if not path.is_dir():
        Run.open(path)
    if found.allow:
        from sightline.commands.hydra_config import add_cwd_to_path

        add_cwd_to_path()
    from sightline.inference.artifact import load
    from sightline.inference.manifest import MANIFEST

    predictor = load(path, device=found.device, allow=found.allow)
    directory = path if (path / MANIFEST).is_file() else Run(path).exported
    took = _time_prediction(predictor)  # before anything is printed: a model that fails is no model to describe
    if found.json:
        print(json.dumps(_describe(predictor, directory, took), indent=2, ensure_ascii=False))
        return 0
    for name, value in _facts(predictor, directory, took):
        print(f"{_plain(name):<12} {_plain(value)}")
    return 0


def _describe(predictor: Predictor, directory: Path, took: float) -> dict[str, Any]:
    """What the lines say, and all that the file says of where the model came from, JSON-ready."""
    from sightline.inference.manifest import WEIGHTS

    manifest = predictor.manifest
    return {
        "path": str(directory),
        "format": manifest["format"],
        "model": manifest["model"],
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "preprocess": manifest["preprocess"],
        "classes": list(predictor.classes),
        "weights": {
            "file": WEIGHTS,
            "bytes": (directory / WEIGHTS).stat().st_size,
            "sha256": manifest["weights_sha256"],
        },
        "metrics": manifest.get("metrics"),
        "provenance": manifest.get("provenance"),
        "answers": {"device": str(predictor.device), "milliseconds": round(took, 3)},
    }


def _plain(text: str) -> str:
    """Without what a terminal would obey: the names in a model may come from anywhere."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _facts(predictor: Predictor, directory: Path, took: float) -> Iterator[tuple[str, str]]:
    """(name, value) of each line; of what the file may lack or have in another form, as much as is there."""
    from sightline.inference.manifest import WEIGHTS

    spec, preprocess, manifest = predictor.spec, predictor.preprocess, predictor.manifest
    count = sum(parameter.numel() for parameter in predictor.model.parameters())
    numbers = {name: ", ".join(f"{value:.4g}" for value in getattr(preprocess, name)) for name in ("mean", "std")}
    yield "model", str(directory)
    yield "network", _network(spec.network)
    yield "parameters", f"{count:,}"
    yield "input", f"{preprocess.channels} x {preprocess.height} x {preprocess.width} (channels x height x width)"
    share = "" if preprocess.crop_pct is None else f", crop_pct {preprocess.crop_pct:.6g}"
    yield "resize", f"{preprocess.resize}{share}, {preprocess.interpolation}, background {preprocess.background}"
    yield "normalise", f"mean {numbers['mean']}  std {numbers['std']}"
    yield "outputs", spec.outputs
    yield (
        "classes",
        f"{len(predictor.classes)}: {join_names(predictor.classes)}" if predictor.classes else "none: a number",
    )
    yield "weights", f"{WEIGHTS}, {(directory / WEIGHTS).stat().st_size:,} bytes"
    yield "sha256", f"{manifest['weights_sha256']}  as noted at the export"
    metrics = _mapping(manifest.get("metrics"))
    for split, values in metrics.items():
        yield split, "  ".join(_metric(name, value) for name, value in _mapping(values).items())
    if not metrics:
        yield "metrics", "none: it has not been measured"
    yield from _origin(_mapping(manifest.get("provenance")), directory)
    yield "answers", f"yes: tried with noise on {predictor.device}, {took:.1f} ms"


def _origin(provenance: Mapping[str, Any], directory: Path) -> Iterator[tuple[str, str]]:
    """Where the model came from, as far as it is known: its run, the data's fingerprints, versions, machine, code. What
    a model of format 1 does not say, its run's own directory may."""
    from sightline.core.files import read_json
    from sightline.runs.directory import Run

    found: Mapping[str, Any] = provenance
    if "packages" not in provenance:
        with suppress(OSError, ValueError):
            found = {**_mapping(read_json(Run(directory.absolute().parent).environment)), **provenance}
        found = {**found, "machine": found.get("machine_words")}
    for name in ("run", "id", "seed"):
        if found.get(name) is not None:
            yield name, str(found[name])
    times = [f"{word} {found[key]}" for word, key in (("began", "began"), ("exported", "time")) if key in found]
    if times:
        yield "time", "  ".join(times)
    for split, fingerprint in _mapping(provenance.get("data")).items():
        yield f"data {split}", str(fingerprint)
    packages = _mapping(found.get("packages"))
    versions = {"python": found.get("python"), "torch": _mapping(found.get("torch")).get("version")}
    versions |= {name: packages.get(name) for name in ("sightline", "torchvision", "timm")}
    if any(versions.values()):
        yield "made with", "  ".join(f"{name} {version}" for name, version in versions.items() if version)
    if found.get("machine"):
        yield "machine", str(found["machine"])
    git = _mapping(found.get("git"))
    if git.get("commit"):
        yield "commit", f"{git['commit']}{_changes(git)}"
    drift = found.get("drift")
    for change in drift if isinstance(drift, list) else ():
        yield (
            "changed",
            f"{join_names(_mapping(_mapping(change).get('changed')))} from step {_mapping(change).get('step')} on",
        )


def _changes(git: Mapping[str, Any]) -> str:
    """What was changed since that commit, in words."""
    diff = str(git.get("diff") or "").splitlines()
    lines = [line for line in diff if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))]
    untracked = git.get("untracked")
    parts = [f"{len(lines)} changed lines"] if lines else []
    parts += [f"{len(untracked)} files of no commit"] if isinstance(untracked, list) and untracked else []
    return f"  and {' and '.join(parts)}" if parts else ""


def _time_prediction(predictor: Predictor) -> float:
    """The milliseconds that an answer to noise took. Raises ArtifactError where there is none, or one that is no
    number."""
    import torch

    noise = torch.randint(
        256, (1, *predictor.preprocess.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    began = time.perf_counter()
    try:
        answer = (predictor.probabilities if predictor.classes else predictor.values)(noise)
    except Exception as error:  # the network's own code, which an allowed model may bring
        raise ArtifactError(
            f"the model cannot answer: it fails on noise with {type(error).__name__}: {error}"
        ) from error
    took = (time.perf_counter() - began) * 1000
    if not bool(torch.isfinite(answer).all()):
        raise ArtifactError("the model answers with NaN or infinite numbers to noise; its weights are of no use.")
    return took


def _network(network: Mapping[str, Any]) -> str:
    """A target with its arguments, or the kinds of a list of layers."""
    if "layers" in network:
        kinds = [str(_mapping(node).get("_target_", node)).rpartition(".")[2] for node in network["layers"]]
        return f"{len(kinds)} layers: {join_names(kinds)}"
    arguments = [f"{name}={value}" for name, value in network.items() if name != "_target_"]
    return f"{network.get('_target_', 'handed over')}({join_names(arguments)})"


def _metric(name: str, value: Any) -> str:
    return f"{name} {value:.4f}" if isinstance(value, int | float) else f"{name} {value}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
