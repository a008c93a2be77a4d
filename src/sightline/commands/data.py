"""`sightline data convert-idx`: unpacks IDX files, the format of MNIST, into PNG files with a CSV table per split."""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Converts the IDX files and prints the number of images written per split. Returns 0."""
    options = argparse.ArgumentParser(
        "sightline data",
        description="Convert datasets. convert-idx unpacks IDX files, the format of MNIST and Fashion-MNIST, into "
        "OUT/train and OUT/test: one PNG file per image, and info.csv with the columns files and type. Prints each "
        "directory with its number of images. Existing directories are not overwritten.",
        epilog="Example: sightline data convert-idx downloads mnist --prefix MNIST",
    )
    options.add_argument("action", choices=("convert-idx",), help="what to do")
    options.add_argument("source", metavar="IDX", help="the directory with the IDX files, plain or .gz")
    options.add_argument("out", metavar="OUT", help="the directory to write train and test into; may be IDX itself")
    options.add_argument(
        "--prefix", default="FashionMNIST", help="the first part of every image's file name; default: %(default)s"
    )
    args = options.parse_args(argv)
    from sightline.core.console import plain_console
    from sightline.core.files import expand_user
    from sightline.data.sources.convert_idx import convert_idx

    console = plain_console(quiet=False)
    for split, count in convert_idx(args.source, args.out, args.prefix).items():
        console.print(f"{expand_user(args.out) / split}  {count:,} images and info.csv")
    return 0
