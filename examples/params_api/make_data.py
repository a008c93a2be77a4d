"""Writes the 1,797 embedded handwritten digits to `data/train` and `data/test`, each with an `info.csv`.

    python make_data.py [DIRECTORY]

To use MNIST or Fashion-MNIST files instead, run: sightline data convert-idx IDX DIRECTORY"""

import csv
import sys
from pathlib import Path

from PIL import Image

from sightline.data.sources.digits import load_digits


def main(root: Path) -> None:
    """Writes the first 1,437 digits as train and the rest as test."""
    images, labels = load_digits()
    for split, rows in (("train", range(1437)), ("test", range(1437, 1797))):
        folder = root / split
        folder.mkdir(parents=True)
        with (folder / "info.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(("files", "type"))
            for i in rows:
                Image.fromarray(images[i]).save(folder / f"digit_{i}.png")
                writer.writerow((f"digit_{i}.png", labels[i]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
