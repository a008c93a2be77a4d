"""`sightline predict RUN PATH…`: predicts the class or value of image files with a run's exported model."""

import argparse
import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.commands.options import add_model_options, positive_int
from sightline.commands.table import print_table
from sightline.core.errors import DataError, SightlineError, did_you_mean
from sightline.core.files import expand_user


def main(argv: Sequence[str]) -> int:
    """Prints a prediction for every image. Returns 0, or 2 if a file could not be read, after predicting the others."""
    args = _parser().parse_args(argv)
    if not Path(args.run).is_dir():
        from sightline.runs.directory import Run

        Run.open(args.run)  # raises ArtifactError, which suggests a name
    files = find_images(args.paths)
    if args.allow:
        from sightline.commands.hydra_config import add_cwd_to_path

        add_cwd_to_path()
    from sightline.inference.artifact import load
    from sightline.inference.predictor import Prediction

    predictor = load(args.run, device=args.device, allow=args.allow)
    failed = 0
    rows: list[tuple[str, ...]] = []
    for path, answer in predictor.predict_each(files):
        if isinstance(answer, SightlineError):
            failed += 1
            if args.json:
                print(json.dumps({"path": str(path), "error": str(answer)}, ensure_ascii=False))
            else:
                print(f"sightline: {answer}", file=sys.stderr)
            continue
        if not isinstance(answer, Prediction):
            if args.json:
                print(json.dumps({"path": str(path), "value": answer.value}, ensure_ascii=False))
            else:
                rows.append((str(path), f"{answer.value:.9g}"))
            continue
        probabilities = dict(zip(predictor.classes, answer.probabilities, strict=True))
        if args.json:
            line: dict[str, Any] = {"path": str(path), "prediction": answer.label, "confidence": answer.confidence}
            if predictor.output.threshold is not None:
                line["certain"] = predictor.output.is_certain(answer.confidence)
            print(json.dumps({**line, "probabilities": probabilities}, ensure_ascii=False))
        else:
            best = sorted(probabilities.items(), key=lambda item: -item[1])[: args.top]
            others = "  ".join(f"{name} {probability:.4f}" for name, probability in best[1:])
            label = answer.label if predictor.output.is_certain(answer.confidence) else f"{answer.label}?"
            rows.append((str(path), label, f"{answer.confidence:.4f}", others))
    if not args.json and rows:
        header = ("image", "prediction", "confidence", "next") if predictor.classes else ("image", "value")
        print_table(header, rows, right=("confidence", "value"))
    if failed:
        print(f"sightline: {failed} of {len(files)} files could not be read", file=sys.stderr)
    return 2 if failed else 0


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "sightline predict",
        description="Predict images with the exported model of a run. Prints one line per image: the predicted class, "
        "its probability ('confidence'), and the next most likely classes; for a regression model, the value. A '?' "
        "after the class means that the confidence is below the model's threshold. The exit code is 2 if a file could "
        "not be read.",
        epilog="Example: sightline predict runs/digits photos 'more/**/*.png'",
    )
    options.add_argument("run", metavar="RUN", help="a run's directory, or its exported folder")
    options.add_argument(
        "paths", nargs="+", metavar="PATH", help="an image file, a folder (searched recursively), or a glob pattern"
    )
    options.add_argument(
        "--json", action="store_true", help="print one JSON object per line, with the probability of every class"
    )
    options.add_argument(
        "--top",
        type=positive_int,
        default=3,
        metavar="N",
        help="number of classes to show per image; default: %(default)s",
    )
    add_model_options(options)
    return options


def find_images(paths: Sequence[str]) -> list[Path]:
    """Returns the image files that `paths` name, without duplicates, in order.

    A path is a file, a folder (searched recursively) or a glob pattern. Raises DataError if one of them names no
    image."""
    from sightline.data.sources.tree import image_files, is_file

    files: dict[Path, None] = {}
    for name in paths:
        path = expand_user(name)
        if path.is_dir():
            matches = image_files(path)
            if not matches:
                raise DataError(f"'{name}': there is no image in this folder.")
        elif is_file(path):
            matches = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]  # noqa: PTH207
            if not matches:
                siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
                raise DataError(f"'{name}' does not exist and matches no file.{did_you_mean(path.name, siblings)}")
        files |= dict.fromkeys(matches)
    return list(files)
