"""`sightline summary`: the network of a config, layer by layer."""

from collections.abc import Sequence

from sightline.commands.hydra_config import add_cwd_to_path, compose_config
from sightline.commands.train import parser


def main(argv: Sequence[str]) -> int:
    """Prints layers, output shapes, parameters and multiply-adds for the data the config names."""
    found = parser("summary", "Print the network's layers, shapes and costs.").parse_intermixed_args(argv)
    config = compose_config(found.overrides, found.config_dir, found.config_name)
    add_cwd_to_path()
    from dataclasses import asdict

    from sightline.compose.data import config_source
    from sightline.compose.weights import resolve_preprocess_keys
    from sightline.data.cache.pack import resolve_decoder
    from sightline.models.probe import summary
    from sightline.models.spec import build_model

    source = config_source(config)
    preprocess = resolve_decoder(source.splits["train"], asdict(resolve_preprocess_keys(config)), config.data.on_bad)
    outputs = "logits" if source.info.classes else "values"
    model, _ = build_model(config.module.network, preprocess.shape, source.info.outputs, outputs=outputs)
    print(summary(model, preprocess.shape))
    return 0
