"""`sightline predict RUN PATH…`: what a trained run says about files, folders and patterns."""

import argparse
import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.commands.options import add_model_options
from sightline.commands.table import print_table
from sightline.core.errors import DataError, SightlineError, did_you_mean
from sightline.core.files import expand_user


def main(argv: Sequence[str]) -> int:
    """Prints one line or one JSON object for each image; 2 when a file was no image, after all others are answered."""
    options = argparse.ArgumentParser("sightline predict", description="Classify images with a trained run.")
    options.add_argument("run", metavar="RUN", help="a run's directory, or its exported folder")
    options.add_argument(
        "paths", nargs="+", metavar="PATH", help="an image, a folder (with all below it), or a pattern"
    )
    options.add_argument("--json", action="store_true", help="one JSON object a line, with every class's probability")
    options.add_argument(
        "--top", type=int, default=3, metavar="N", help="classes to show for each image; default: %(default)s"
    )
    add_model_options(options)
    found = options.parse_args(argv)
    if not Path(found.run).is_dir():
        from sightline.runs.directory import Run

        Run.open(found.run)
    files = find_images(found.paths)
    if found.allow:
        from sightline.commands.hydra_config import add_cwd_to_path

        add_cwd_to_path()
    from sightline.inference.artifact import load
    from sightline.inference.predictor import Prediction

    predictor = load(found.run, device=found.device, allow=found.allow)
    failed = 0
    rows: list[tuple[str, ...]] = []
    for path, answer in predictor.predict_each(files):
        if isinstance(answer, SightlineError):
            failed += 1
            if found.json:
                print(json.dumps({"path": str(path), "error": str(answer)}, ensure_ascii=False))
            else:
                print(f"sightline: {answer}", file=sys.stderr)
            continue
        if not isinstance(answer, Prediction):
            if found.json:
                print(json.dumps({"path": str(path), "value": answer.value}, ensure_ascii=False))
            else:
                rows.append((str(path), f"{answer.value:.9g}"))
            continue
        probabilities = dict(zip(predictor.classes, answer.probabilities, strict=True))
        if found.json:
            line: dict[str, Any] = {"path": str(path), "prediction": answer.label, "confidence": answer.confidence}
            if predictor.output.threshold is not None:
                line["certain"] = predictor.output.is_certain(answer.confidence)
            print(json.dumps({**line, "probabilities": probabilities}, ensure_ascii=False))
        else:
            best = sorted(probabilities.items(), key=lambda item: -item[1])[: max(found.top, 1)]
            others = "  ".join(f"{name} {probability:.4f}" for name, probability in best[1:])
            label = answer.label if predictor.output.is_certain(answer.confidence) else f"{answer.label}?"
            rows.append((str(path), label, f"{answer.confidence:.4f}", others))
    if not found.json and rows:
        header = ("image", "prediction", "confidence", "next") if predictor.classes else ("image", "value")
        print_table(header, rows, right=("confidence", "value"))
    if failed:
        done = "classified" if predictor.classes else "read"
        print(f"sightline: {failed} of {len(files)} files could not be {done}", file=sys.stderr)
    return 2 if failed else 0


def find_images(paths: Sequence[str]) -> list[Path]:
    """Every image the words name, each once, in order. Raises DataError for a word that names none."""
    from sightline.data.sources.tree import image_files, is_file

    found: dict[Path, None] = {}
    for word in paths:
        path = expand_user(word)
        if path.is_dir():
            inside = image_files(path)
            if not inside:
                raise DataError(f"no image in the folder '{word}'.")
        elif is_file(path):
            inside = [path]
        else:
            inside = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]  # noqa: PTH207
            if not inside:
                siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
                raise DataError(f"'{word}' does not exist and matches nothing.{did_you_mean(path.name, siblings)}")
        found |= dict.fromkeys(inside)
    return list(found)
