"""`sightline predict RUN PATH…`: classify files, folders and patterns."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sightline.commands.options import add_model_options
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
    from sightline.runs.artifact import load

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
        _print_table(rows)
    if failed:
        print(f"sightline: {failed} of {len(files)} files could not be classified", file=sys.stderr)
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


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    header = ("image", "prediction", "confidence", "next")
    if not console.is_terminal:  # for another program: tabs, and nothing cut
        for row in (header, *rows):
            print("\t".join(row))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold", justify="right" if name == "confidence" else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
