"""`sightline data convert-idx`: MNIST's files -> folders of pictures with their tables."""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Converts, and says what was written."""
    options = argparse.ArgumentParser(
        "sightline data",
        description="Work on data sets. convert-idx unpacks IDX files, as MNIST and Fashion-MNIST are handed out, into "
        "OUT/train and OUT/test: a PNG file for each picture, and info.csv with the columns files and type.",
    )
    options.add_argument("action", choices=("convert-idx",), help="what to do")
    options.add_argument("source", metavar="IDX", help="the directory of the IDX files, plain or .gz")
    options.add_argument("out", metavar="OUT", help="where train and test will be; may be the same directory")
    options.add_argument(
        "--prefix", default="FashionMNIST", help="what the names of the pictures begin with; default: %(default)s"
    )
    found = options.parse_args(argv)
    from sightline.core.files import expand_user
    from sightline.data.sources.convert_idx import convert_idx
    from sightline.engine.progress import plain_console

    console = plain_console()
    for split, count in convert_idx(found.source, found.out, found.prefix).items():
        console.print(f"{expand_user(found.out) / split}  {count:,} pictures and info.csv")
    return 0
