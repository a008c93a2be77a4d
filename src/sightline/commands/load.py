"""`sightline load RUN`: checks an exported model and describes it."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.commands.options import add_model_options
from sightline.commands.table import print_json
from sightline.core.errors import ArtifactError, join_names

if TYPE_CHECKING:
    from sightline.inference.predictor import Predictor


def main(argv: Sequence[str]) -> int:
    """Loads an exported model with every check, predicts once on random input and prints its description. Returns 0.

    Raises ArtifactError if the model is damaged, or fails or returns NaN for the random input."""
    options = argparse.ArgumentParser(
        "sightline load",
        description="Check an exported model and describe it: its network, input, classes, weights, metrics and "
        "provenance. Verifies the checksums and runs one prediction on random input. Needs no data and no network "
        "access.",
        epilog="Example: sightline load runs/digits",
        allow_abbrev=False,
    )
    options.add_argument("run", metavar="RUN", help="a run's directory, or its exported folder")
    options.add_argument("--json", action="store_true", help="print one JSON object, with the complete provenance")
    add_model_options(options)
    args = options.parse_args(argv)
    from sightline.runs.directory import Run

    path = Path(args.run)
    if not path.is_dir():
        Run.open(path)  # raises ArtifactError, which suggests a name
    if args.allow:
        from sightline.commands.hydra_config import add_cwd_to_path

        add_cwd_to_path()
    from sightline.inference.artifact import load
    from sightline.inference.manifest import MANIFEST

    predictor = load(path, device=args.device, allow=args.allow)
    directory = path if (path / MANIFEST).is_file() else Run(path).exported
    milliseconds = _time_prediction(predictor)  # before printing, so that a model that fails is not described
    if args.json:
        print_json(_describe(predictor, directory, milliseconds))
        return 0
    for name, value in _description_lines(predictor, directory, milliseconds):
        print(f"{_escape(name):<12} {_escape(value)}")
    return 0


def _describe(predictor: Predictor, directory: Path, milliseconds: float) -> dict[str, Any]:
    """Returns the model's description with the complete provenance, ready for JSON."""
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
        "answers": {"device": str(predictor.device), "milliseconds": round(milliseconds, 3)},
    }


def _escape(text: str) -> str:
    """Escapes control characters, because the names in a model may come from an untrusted place."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _description_lines(predictor: Predictor, directory: Path, milliseconds: float) -> Iterator[tuple[str, str]]:
    """Yields (name, value) for each line to print, skipping values that the manifest lacks or has in another form."""
    from sightline.inference.manifest import WEIGHTS

    spec, preprocess, manifest = predictor.spec, predictor.preprocess, predictor.manifest
    count = sum(parameter.numel() for parameter in predictor.model.parameters())
    numbers = {name: ", ".join(f"{value:.4g}" for value in getattr(preprocess, name)) for name in ("mean", "std")}
    yield "model", str(directory)
    yield "network", _network(spec.network)
    yield "parameters", f"{count:,}"
    yield "input", f"{preprocess.channels} x {preprocess.height} x {preprocess.width} (channels x height x width)"
    crop = "" if preprocess.crop_pct is None else f", crop_pct {preprocess.crop_pct:.6g}"
    yield "resize", f"{preprocess.resize}{crop}, {preprocess.interpolation}, background {preprocess.background}"
    yield "normalise", f"mean {numbers['mean']}  std {numbers['std']}"
    yield "outputs", spec.outputs
    yield (
        "classes",
        f"{len(predictor.classes)}: {join_names(predictor.classes)}"
        if predictor.classes
        else "none: the model predicts a number",
    )
    yield "weights", f"{WEIGHTS}, {(directory / WEIGHTS).stat().st_size:,} bytes"
    yield "sha256", f"{manifest['weights_sha256']}  (verified)"
    metrics = _mapping(manifest.get("metrics"))
    for split, values in metrics.items():
        yield split, "  ".join(_metric(name, value) for name, value in _mapping(values).items())
    if not metrics:
        yield "metrics", "none: the model has not been evaluated"
    yield from _provenance_lines(_mapping(manifest.get("provenance")), directory)
    yield "check", f"passed: predicted random input on {predictor.device} in {milliseconds:.1f} ms"


def _provenance_lines(provenance: Mapping[str, Any], directory: Path) -> Iterator[tuple[str, str]]:
    """Yields the lines about the model's origin: run, data fingerprints, versions, machine and commit.

    A model of format 1 has a short provenance; its run's environment.json, if it exists, fills the gaps."""
    from sightline.core.files import read_json
    from sightline.runs.directory import Run

    known: Mapping[str, Any] = provenance
    if "packages" not in provenance:
        with suppress(OSError, ValueError):
            known = {**_mapping(read_json(Run(directory.absolute().parent).environment)), **provenance}
        known = {**known, "machine": known.get("machine_words")}
    for name in ("run", "id", "seed"):
        if known.get(name) is not None:
            yield name, str(known[name])
    times = [f"{event} {known[key]}" for event, key in (("started", "began"), ("exported", "time")) if key in known]
    if times:
        yield "time", "  ".join(times)
    for split, fingerprint in _mapping(provenance.get("data")).items():
        yield f"data {split}", str(fingerprint)
    packages = _mapping(known.get("packages"))
    versions = {"python": known.get("python"), "torch": _mapping(known.get("torch")).get("version")}
    versions |= {name: packages.get(name) for name in ("sightline", "torchvision", "timm")}
    if any(versions.values()):
        yield "versions", "  ".join(f"{name} {version}" for name, version in versions.items() if version)
    if known.get("machine"):
        yield "machine", str(known["machine"])
    git = _mapping(known.get("git"))
    if git.get("commit"):
        yield "commit", f"{git['commit']}{_uncommitted(git)}"
    drift = known.get("drift")
    for change in drift if isinstance(drift, list) else ():
        yield (
            "changed",
            f"{join_names(_mapping(_mapping(change).get('changed')))} from step {_mapping(change).get('step')} on",
        )


def _uncommitted(git: Mapping[str, Any]) -> str:
    """Describes the uncommitted changes and untracked files; empty if there are none."""
    diff = str(git.get("diff") or "").splitlines()
    lines = [line for line in diff if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))]
    untracked = git.get("untracked")
    parts = [f"{len(lines)} changed lines"] if lines else []
    parts += [f"{len(untracked)} untracked files"] if isinstance(untracked, list) and untracked else []
    return f"  with {' and '.join(parts)}" if parts else ""


def _time_prediction(predictor: Predictor) -> float:
    """Predicts once on random input and returns the time in milliseconds.

    Raises ArtifactError if the prediction fails or is not finite."""
    import torch

    noise = torch.randint(
        256, (1, *predictor.preprocess.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    start = time.perf_counter()
    try:
        output = (predictor.probabilities if predictor.classes else predictor.values)(noise)
    except Exception as error:  # custom code of the network, allowed with --allow, may raise anything
        raise ArtifactError(f"The model fails on random input with {type(error).__name__}: {error}") from error
    milliseconds = (time.perf_counter() - start) * 1000
    if not bool(torch.isfinite(output).all()):
        raise ArtifactError("The model returns NaN or infinite values for random input, so it cannot be used.")
    return milliseconds


def _network(network: Mapping[str, Any]) -> str:
    """Describes a network node: its target with arguments, or the number and the types of its layers."""
    if "layers" in network:
        kinds = [str(_mapping(node).get("_target_", node)).rpartition(".")[2] for node in network["layers"]]
        return f"{len(kinds)} layers: {join_names(kinds)}"
    if "object" in network:
        return f"{network['object']}, passed in from Python"
    arguments = [f"{name}={value}" for name, value in network.items() if name != "_target_"]
    return f"{network.get('_target_')}({join_names(arguments)})"


def _metric(name: str, value: Any) -> str:
    return f"{name} {value:.4f}" if isinstance(value, int | float) else f"{name} {value}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
