"""`sightline show [DATA]`: draws a contact sheet of training images with their augmentations."""

from collections.abc import Sequence

from sightline.commands.hydra_config import add_cwd_to_path, compose_config
from sightline.commands.options import positive_int
from sightline.commands.train import parser
from sightline.core.errors import ConfigError
from sightline.core.files import expand_user


def main(argv: Sequence[str]) -> int:
    """Writes an image file with one row per image: the original, the network's input, and augmented versions.

    Returns 0. Raises ConfigError if the file exists or cannot be written."""
    options = parser(
        "show",
        "Draw training images into one image file. Each row shows the original, the preprocessed image that the "
        "network sees, and its augmented versions in the first epochs. DATA is the same as data.root=DATA; without it "
        "the embedded digits dataset is drawn. Prints the file's name and size. Example: sightline show PATH "
        "data.augment.policy=trivial",
    )
    options.usage = (
        "sightline show [DATA] [key=value …] [--out FILE] [--count N] [--epochs N] [--config-dir DIR] "
        "[--config-name NAME]"
    )
    options.add_argument(
        "--out", metavar="FILE", default="sheet.png", help="the image file to write; default: %(default)s"
    )
    options.add_argument(
        "--count", type=positive_int, default=8, metavar="N", help="number of images to draw; default: %(default)s"
    )
    options.add_argument(
        "--epochs", type=positive_int, default=4, metavar="N", help="number of epochs to draw; default: %(default)s"
    )
    args = options.parse_intermixed_args(argv)
    # a first argument that is not key=value is DATA
    overrides = [
        f"data.root={text}" if position == 0 and "=" not in text else text
        for position, text in enumerate(args.overrides)
    ]
    config = compose_config(overrides, args.config_dir, args.config_name)
    out = expand_user(args.out)
    if out.exists():
        raise ConfigError(f"--out: '{out}' already exists. Choose another name.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: the directory '{out.parent}' does not exist.")
    add_cwd_to_path()
    from sightline.compose.data import config_source, open_data, train_loader
    from sightline.compose.weights import resolve_preprocess_keys
    from sightline.engine.runtime import Runtime
    from sightline.report.sheet import draw_sheet, image_formats

    if out.suffix.lower() not in image_formats():
        raise ConfigError(f"--out: '{out}' does not have the suffix of an image format. Use '{out.stem}.png'.")
    source = config_source(config)
    data, preprocess = open_data(config, source, resolve_preprocess_keys(config))
    loader = train_loader(config, data["train"], preprocess, Runtime("cpu", seed=config.seed))
    samples = [sample for split in ("test", "val", "train") for sample in source.splits.get(split, ())]
    sheet = draw_sheet(loader, samples, preprocess, args.count, args.epochs)
    try:
        sheet.save(out)
    except (OSError, ValueError, KeyError) as error:
        out.unlink(missing_ok=True)
        raise ConfigError(
            f"--out: '{out}' cannot be written ({sheet.width} x {sheet.height} pixels): {error}."
        ) from error
    print(f"{out}  {sheet.width} x {sheet.height} pixels: {min(args.count, len(loader.dataset))} training images")
    return 0
