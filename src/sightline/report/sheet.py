"""A contact sheet of training images: the original, the network's input, and augmented versions."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sightline.core.rng import Permutation, derive_key
from sightline.data.images.decode import decode_image, height_width, sample_name
from sightline.data.images.preprocess import Preprocess
from sightline.data.loading.loader import BatchLoader
from sightline.data.records import Sample

_CELL, _GAP, _LINE = 128, 8, 16
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def image_formats() -> frozenset[str]:
    """Returns the file suffixes that Pillow can save, such as `.png`."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.SAVE)


def draw_sheet(
    loader: BatchLoader, samples: Sequence[Sample], preprocess: Preprocess, count: int, epochs: int
) -> Image.Image:
    """Draws a sheet with one row for each of `count` images, chosen at random with the seed of the training `loader`.

    The columns are the original file, the network's input without augmentation, and the augmented input in each of
    `epochs` epochs. `samples` must include the loader's samples and may have more; if an id occurs several times, the
    last sample is shown, so those of the training split must come last."""
    dataset = loader.dataset
    rows = Permutation(len(dataset), derive_key(loader.seed, 0, "sheet"))[: min(count, len(dataset))]
    by_id = {sample.id: sample for sample in samples}
    plain = BatchLoader(dataset, preprocess, loader.batch_size, workers=0)
    columns = [_to_images(plain.look(rows, 0).x, preprocess)]
    columns += [_to_images(loader.look(rows, epoch).x, preprocess) for epoch in range(epochs)]
    titles = ["file", "network", *(f"epoch {epoch}" for epoch in range(epochs))]
    width = _GAP + (_CELL + _GAP) * len(titles)
    height = _GAP + _LINE + (_CELL + _LINE + _GAP) * len(rows)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for position, title in enumerate(titles):
        draw.text((_GAP + position * (_CELL + _GAP), _GAP), title, _INK, font)
    for line, row in enumerate(rows.tolist()):
        sample = by_id[dataset.ids[row]]
        top = _GAP + _LINE + line * (_CELL + _LINE + _GAP)
        for position, image in enumerate([_original_image(sample), *(column[line] for column in columns)]):
            cell = _fit_to_cell(image)
            left = _GAP + position * (_CELL + _GAP)
            sheet.paste(cell, (left + (_CELL - cell.width) // 2, top + (_CELL - cell.height) // 2))
        label = dataset.classes[int(sample.label)] if dataset.classes else f"{sample.label:.6g}"
        draw.text((_GAP, top + _CELL + 1), f"{label}   {sample.id}", _INK, font)
    return sheet


def _original_image(sample: Sample) -> Image.Image:
    """Returns the image in its original size, in RGB."""
    name = sample_name(sample)
    height, width = height_width(decode_image(sample.image, name))
    return Image.fromarray(Preprocess(height, width, 3).decode(sample.image, name).transpose(1, 2, 0))


def _fit_to_cell(image: Image.Image) -> Image.Image:
    """Scales an image to the size of a cell, a small one without interpolation, so that its pixels are visible."""
    factor = _CELL / max(image.size)
    size = tuple(max(1, round(side * factor)) for side in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def _to_images(x: object, preprocess: Preprocess) -> list[Image.Image]:
    """Converts normalised network inputs, float32 [B, C, H, W], back to RGB images."""
    assert isinstance(x, Tensor)
    shape = (1, preprocess.channels, 1, 1)
    mean, std = (torch.tensor(values).view(shape) for values in (preprocess.mean, preprocess.std))
    pixels = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("RGB") for image in pixels]
