"""Properties of the named networks beyond their shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sightline
from sightline.core.errors import ModelError
from sightline.models.networks import FastCNN


def smooth_images(n: int = 300, channels: int = 3) -> Tensor:
    """Smooth noise, in which neighbouring pixels are similar, as in photographs."""
    noise = torch.randn(n, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_convolution_decorrelates_patches(channels: int) -> None:
    torch.manual_seed(0)
    model = FastCNN(in_channels=channels, widths=(8, 8))
    images = smooth_images(channels=channels)
    model.initialize_from(images)
    with torch.no_grad():
        output = torch.nn.functional.conv2d(images, model.whiten.weight)
    count = 4 * channels
    flat = output[:, :count].transpose(0, 1).flatten(1)
    covariance = flat @ flat.T / flat.shape[1]
    off = covariance - torch.diag(covariance.diag())
    assert off.abs().max() < 1e-3
    assert (covariance.diag() <= 1.001).all()
    assert covariance.diag().max() > 0.95  # components that vary much have a variance of 1; 0.01 damps the others
    torch.testing.assert_close(output[:, count:], -output[:, :count])
    assert not model.whiten.weight.requires_grad
    assert model.whiten.bias is not None
    assert model.whiten.bias.requires_grad


def test_the_other_convolutions_start_as_the_identity() -> None:
    model = FastCNN(widths=(32, 8))
    first = model.features[1]
    x = torch.randn(2, 24, 6, 6)
    torch.testing.assert_close(first(x)[:, :24], x)


def test_with_mirror_an_image_and_its_mirror_image_have_the_same_output() -> None:
    torch.manual_seed(0)
    plain, mirrored = FastCNN(widths=(8, 8)), FastCNN(widths=(8, 8), mirror=True)
    mirrored.load_state_dict(plain.state_dict())
    images = smooth_images(4)
    plain.eval()
    mirrored.eval()
    with torch.no_grad():
        expected = (plain(images) + plain(images.flip(3))) / 2
        torch.testing.assert_close(mirrored(images), expected)
        torch.testing.assert_close(mirrored(images.flip(3)), expected)
        plain.train()
        mirrored.train()
        torch.testing.assert_close(mirrored(images), plain(images))  # in training, the augmentation flips images


def config(place: Path, name: str) -> dict[str, Any]:
    """One epoch with a small network."""
    return {
        "run": {"dir": str(place), "name": name},
        "data": {"val": 0.2, "test": 0.2, "cache": False},
        "module": {
            "network": {
                "_target_": "sightline.models.networks.FastCNN", "in_channels": "auto", "num_classes": "auto",
                "widths": [8, 8],
            }
        },
        "trainer": {"max_epochs": 1, "device": "cpu", "progress": False},
    }  # fmt: skip


def test_a_run_initializes_it_from_its_training_images_in_any_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (60, 16, 16, 3), np.uint8)
    labels = np.arange(60) % 3
    permutation = generator.permutation(60)
    weights = []
    for name, order in (("a", np.arange(60)), ("b", permutation)):
        assembly = sightline.assemble(config(tmp_path, name), source=(images[order], labels[order]))
        model = assembly.trainer.state.model
        assert isinstance(model, FastCNN)
        weights.append(model.whiten.weight.clone())
        before = model.whiten.weight.clone()
        assembly.fit()
        assert torch.equal(before, model.whiten.weight)  # it is not trained
        predictor = sightline.load(assembly.run.path)
        assert isinstance(predictor.model, FastCNN)
        assert torch.equal(predictor.model.whiten.weight, before)
    assert torch.equal(*weights)
    torch.manual_seed(0)
    assert not torch.allclose(weights[0], FastCNN(widths=(8, 8)).whiten.weight)


class Picky(FastCNN):
    """Cannot be initialized from images."""

    def initialize_from(self, images: Tensor) -> None:
        raise RuntimeError("too few colours")


def test_a_network_that_cannot_be_initialized_is_named(tmp_path: Path) -> None:
    settings = config(tmp_path / "runs", "a")
    settings["module"]["network"]["_target_"] = f"{__name__}.Picky"
    images = np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3), np.uint8)
    with pytest.raises(ModelError, match=r"Picky\.initialize_from failed on .* RuntimeError: too few colours"):
        sightline.assemble(settings, source=(images, np.arange(60) % 3))
    assert not (tmp_path / "runs").exists()
