"""The embedded handwritten digits as a torch dataset."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import transforms

from sightline.data.sources.digits import load_digits

TO_TENSOR = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
SHIFTED = transforms.Compose([transforms.ToPILImage(), transforms.RandomAffine(0, translate=(0.1, 0.1)), TO_TENSOR])


class Digits(Dataset[tuple[Tensor, int]]):
    """1,400 grey images of 8 x 8 pixels to train on, or 397 to test on."""

    def __init__(self, train: bool = True, shifted: bool = False):
        images, labels = load_digits()
        part = slice(None, 1400) if train else slice(1400, None)
        self.images = images[part]
        self.labels = labels[part]
        self.transform = SHIFTED if shifted else TO_TENSOR

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index][..., None]), int(self.labels[index])
