"""`sightline show DATA`: a contact sheet of the training images."""

import argparse
from collections.abc import Sequence

from sightline.commands.hydra_config import add_cwd_to_path, compose_config
from sightline.commands.train import parser
from sightline.core.errors import ConfigError
from sightline.core.files import expand_user


def main(argv: Sequence[str]) -> int:
    """Writes a picture file: each image raw, as the network sees it, and augmented as the first epochs show it."""
    options = parser("show", "Draw training images: as they are, as the network sees them, and augmented.")
    options.usage = "sightline show [DATA] [key=value …] [--out FILE]"
    options.add_argument("--out", metavar="FILE", default="sheet.png", help="the file to write; default: %(default)s")
    options.add_argument("--count", type=_at_least_one, default=8, metavar="N", help="images; default: %(default)s")
    options.add_argument("--epochs", type=_at_least_one, default=4, metavar="N", help="epochs; default: %(default)s")
    found = options.parse_intermixed_args(argv)
    # a first word that is no key=value is the data's place
    given = [
        f"data.root={word}" if position == 0 and "=" not in word else word
        for position, word in enumerate(found.overrides)
    ]
    config = compose_config(given, found.config_dir, found.config_name)
    out = expand_user(found.out)
    if out.exists():
        raise ConfigError(f"--out: '{out}' exists; choose another name.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no directory '{out.parent}'.")
    add_cwd_to_path()
    from sightline.compose.data import config_source, open_data, train_loader
    from sightline.compose.weights import resolve_preprocess_keys
    from sightline.engine.runtime import Runtime
    from sightline.report.sheet import draw_sheet, image_formats

    if out.suffix.lower() not in image_formats():
        raise ConfigError(f"--out: '{out}' has no suffix of a picture format; call it '{out.stem}.png'.")
    source = config_source(config)
    data, preprocess = open_data(config, source, resolve_preprocess_keys(config))
    loader = train_loader(config, data["train"], preprocess, Runtime("cpu", seed=config.seed))
    samples = [sample for split in ("test", "val", "train") for sample in source.splits.get(split, ())]
    sheet = draw_sheet(loader, samples, preprocess, found.count, found.epochs)
    try:
        sheet.save(out)
    except (OSError, ValueError, KeyError) as error:
        out.unlink(missing_ok=True)
        raise ConfigError(
            f"--out: '{out}' cannot be written, {sheet.width} x {sheet.height} pixels: {error}."
        ) from error
    print(f"{out}  {sheet.width} x {sheet.height} pixels: {min(found.count, len(loader.dataset))} training images")
    return 0


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return int(text)
