"""Builds the list of augmentations of a training run from option values."""

from collections.abc import Sequence

from sightline.core.types import Augmentation
from sightline.data.augment.colour import ColorJitter
from sightline.data.augment.flip_shift import Flip, ShiftCrop
from sightline.data.augment.geometry import Affine, Cutout, Erase, RandomResizedCrop
from sightline.data.augment.policies import RandAugment, TrivialAugment


def augmentation_pipeline(
    *,
    crop: Sequence[float] | None = None,
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    flip: float = 0.0,
    vertical_flip: float = 0.0,
    shift: int = 0,
    rotate: float = 0.0,
    translate: float = 0.0,
    scale: Sequence[float] = (1.0, 1.0),
    shear: float = 0.0,
    policy: str | None = None,
    rand_ops: int = 2,
    rand_magnitude: int = 9,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    transforms: Sequence[Augmentation] = (),
    erase: float = 0.0,
    cutout: int = 0,
) -> list[Augmentation]:
    """Returns the enabled augmentations in the order in which they are applied; arguments are as in `data.augment`.

    The crop is first, so that it can be taken from the original image; `erase` and `cutout` are last, so that no other
    augmentation changes the blackened area."""
    steps: list[Augmentation] = []
    if crop is not None:
        steps.append(RandomResizedCrop((crop[0], crop[1]), (crop_ratio[0], crop_ratio[1])))
    if flip:
        steps.append(Flip(flip))
    if vertical_flip:
        steps.append(Flip(vertical_flip, vertical=True))
    if shift:
        steps.append(ShiftCrop(shift))
    if rotate or translate or shear or tuple(scale) != (1.0, 1.0):
        steps.append(Affine(rotate, translate, (scale[0], scale[1]), shear))
    if policy is not None:
        steps.append(TrivialAugment() if policy == "trivial" else RandAugment(rand_ops, rand_magnitude))
    if brightness or contrast or saturation:
        steps.append(ColorJitter(brightness, contrast, saturation))
    steps.extend(transforms)
    if erase:
        steps.append(Erase(erase))
    if cutout:
        steps.append(Cutout(cutout))
    return steps
