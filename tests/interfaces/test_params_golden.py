"""The accuracy of the params-dict trainer on real digits."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from helpers.params_digits import lay_out
from helpers.params_user import collection, test_step_for, train_step
from sightline.params import build_classifier, params, set_seeds, train


@pytest.mark.slow
@pytest.mark.rows("A34", "AB3", "AB7", "AB8")
@pytest.mark.parametrize(("outputs", "least"), [("probabilities", 0.94), ("logits", 0.97)])
def test_the_documents_parameters_learn_digits_in_ten_epochs(
    mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], outputs: str, least: float
) -> None:
    """Trains on 8,000 digits without flips and evaluates on 2,000. `benchmarks/interfaces.py --accuracy` measures the
    mean of three seeds."""
    lay_out(mnist, tmp_path / "data", 8000, 2000)
    changes = {"flip_images": False, "num_epochs": 10, "eval_batch_size": 500, "device": "cpu"}
    settings = params | changes
    set_seeds(settings["manual_seed"])
    # without channels_last it takes 1.5 times as long; the arithmetic is the same
    model = build_classifier(settings, outputs=outputs).to(memory_format=torch.channels_last)
    with pytest.warns(UserWarning, match=r"1\.4612") if outputs == "probabilities" else nullcontext():
        done = train(
            settings,
            model,
            train_step,
            test_step_for(settings),
            tmp_path / "data",
            tmp_path / "logs",
            test_torchmetrics=collection(),
        )
    assert done
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Accuracy ")][-1]
    assert float(last.split()[1]) >= least
