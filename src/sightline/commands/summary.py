"""`sightline summary`: the network of a config, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.commands.compose import checked, user_code
from sightline.commands.train import parser


def main(words: Sequence[str]) -> int:
    """Prints layers, output shapes, parameters and multiply-adds for the data the config names."""
    found = parser("summary", "Print the network's layers, shapes and costs.").parse_intermixed_args(words)
    config = checked(found.overrides, found.config_dir, found.config_name)
    user_code()
    from dataclasses import asdict

    from sightline.compose.data import config_source
    from sightline.compose.weights import wanted_preprocess
    from sightline.data.packing import decoder_for
    from sightline.models.probe import summary
    from sightline.models.spec import build_model

    source = config_source(config)
    preprocess = decoder_for(source.splits["train"], asdict(wanted_preprocess(config)), config.data.on_bad)
    outputs = "logits" if source.info.classes else "values"
    model, _ = build_model(config.module.network, preprocess.shape, source.info.outputs, outputs=outputs)
    print(summary(model, preprocess.shape))
    return 0
