"""`sightline summary`: prints the network of a config layer by layer."""

from collections.abc import Sequence

from sightline.commands.hydra_config import add_cwd_to_path, compose_config
from sightline.commands.table import print_json
from sightline.commands.train import parser


def main(argv: Sequence[str]) -> int:
    """Prints the layers of the config's network, with output shapes, parameters and multiply-adds. Returns 0."""
    options = parser(
        "summary",
        "Print the network of a config. Each line is a layer with its output shape, number of parameters and "
        "multiply-adds for one image of the config's data; the last line is the total. Example: sightline summary "
        "model=timm/resnet18 data.root=PATH",
    )
    options.add_argument("--json", action="store_true", help="print the layers as JSON")
    args = options.parse_intermixed_args(argv)
    config = compose_config(args.overrides, args.config_dir, args.config_name)
    add_cwd_to_path()
    from dataclasses import asdict

    from sightline.compose.data import config_source
    from sightline.compose.weights import resolve_preprocess_keys
    from sightline.data.cache.pack import resolve_decoder
    from sightline.models.probe import summary, trace
    from sightline.models.spec import build_model

    source = config_source(config)
    preprocess = resolve_decoder(source.splits["train"], asdict(resolve_preprocess_keys(config)), config.data.on_bad)
    outputs = "logits" if source.info.classes else "values"
    model, _ = build_model(config.module.network, preprocess.shape, source.info.outputs, outputs=outputs)
    if not args.json:
        print(summary(model, preprocess.shape))
        return 0
    print_json({"input": preprocess.shape, **asdict(trace(model, preprocess.shape))})
    return 0
