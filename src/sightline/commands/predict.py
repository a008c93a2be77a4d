"""`sightline predict RUN PATH…`: what a trained run says about files, folders and patterns."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sightline.commands.options import add_model_options
from sightline.commands.table import print_table
from sightline.errors import DataError, SightlineError, nearest
from sightline.files import expanded


def main(words: Sequence[str]) -> int:
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
    found = options.parse_args(words)
    if not Path(found.run).is_dir():
        from sightline.runs.directory import Run

        Run.open(found.run)
    files = expand(found.paths)
    if found.allow:
        from sightline.commands.compose import user_code

        user_code()
    from sightline.runs.artifact import Prediction, load

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
            told = {"path": str(path), "prediction": answer.label, "confidence": answer.confidence}
            print(json.dumps({**told, "probabilities": probabilities}, ensure_ascii=False))
        else:
            best = sorted(probabilities.items(), key=lambda item: -item[1])[: max(found.top, 1)]
            rows.append(
                (str(path), answer.label, f"{answer.confidence:.4f}", "  ".join(f"{n} {p:.4f}" for n, p in best[1:]))
            )
    if not found.json and rows:
        header = ("image", "prediction", "confidence", "next") if predictor.classes else ("image", "value")
        print_table(header, rows, right=("confidence", "value"))
    if failed:
        done = "classified" if predictor.classes else "read"
        print(f"sightline: {failed} of {len(files)} files could not be {done}", file=sys.stderr)
    return 2 if failed else 0


def expand(paths: Sequence[str]) -> list[Path]:
    """Every image the words name, each once, in order. Raises DataError for a word that names none."""
    from sightline.data.trees import image_files, is_file

    found: dict[Path, None] = {}
    for word in paths:
        path = expanded(word)
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
                raise DataError(f"'{word}' does not exist and matches nothing.{nearest(path.name, siblings)}")
        found |= dict.fromkeys(inside)
    return list(found)
