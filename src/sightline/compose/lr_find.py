"""Runs the learning-rate finder on a config, with the parts that a run would have but without creating a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sightline.compose.assemble import as_config
from sightline.compose.checks import check_given
from sightline.compose.parts import build_parts
from sightline.config.names import NAMES
from sightline.config.schema import TrainConfig
from sightline.config.typed import nodes_of
from sightline.core.errors import RunFailedError, SightlineError, argument_names
from sightline.core.types import TrainState
from sightline.engine.tools.lr_finder import LRCurve, check_range, find_lr
from sightline.engine.tools.snapshot import Snapshot


@argument_names(NAMES)
def lr_find(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    *,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    stop_factor: float = 4.0,
    on_step: Callable[[int, float, float], None] | None = None,
    **given: Any,
) -> LRCurve:
    """Measures the loss over growing learning rates for a config, and returns the curve with a suggested learning rate.

    It trains `steps` batches from learning rate `low` to `high`, with the config's network, data, optimiser, precision
    and augmentation. It creates no run and writes only the data cache. `given` are parts as in `assemble`; a model and
    an optimiser are restored afterwards, including device, memory format and learning rate. Callbacks and a recorder
    are not called. `stop_factor`, `on_step` and the suggestion are described in `find_lr`.

    Raises as `assemble` and `find_lr` do, and RunFailedError if a step fails."""
    check_range(low, high, steps, stop_factor)
    config = as_config(config)
    check_given(given)
    done = 0

    def count(number: int, lr: float, smoothed: float) -> None:
        nonlocal done
        done = number
        if on_step is not None:
            on_step(number, lr, smoothed)

    options: dict[str, Any] = {"low": low, "high": high, "steps": steps, "stop_factor": stop_factor, "on_step": count}
    # building the parts moves and compiles the network, and a schedule sets the optimiser's learning rates
    before = Snapshot(TrainState(given.get("model"), given.get("optimizer")))  # type: ignore[arg-type]
    try:
        parts = build_parts(config, given)
        try:
            with parts.runtime.active():
                return find_lr(parts.task, parts.state, parts.train, runtime=parts.runtime, **options)
        except SightlineError:
            raise
        except Exception as error:  # custom code of the network or the loss may raise anything
            message = f"Step {done + 1} of the learning-rate finder failed with {type(error).__name__}: {error}"
            raise RunFailedError(message) from error
    finally:
        before.restore()


def lr_key(config: TrainConfig) -> str:
    """Returns the config key to set to the suggested learning rate.

    It is the optimiser's `lr`, except that a schedule's own `max_lr` or a larger `module.head_lr` takes precedence."""
    module = config.module
    for where, node in nodes_of("module.lr_scheduler", module.lr_scheduler):
        arguments = node.get("kwargs") or {} if "class" in node else node
        if arguments.get("max_lr", "auto") != "auto":
            return f"{where}{'.kwargs' if 'class' in node else ''}.max_lr"
    lr = module.optimizer.get("lr", 0)
    if module.head_lr is not None and module.layer_decay != 1 and isinstance(lr, int | float) and module.head_lr > lr:
        return "module.head_lr"  # the largest learning rate; the others keep their ratio to it
    return f"module.optimizer{'.kwargs' if 'class' in module.optimizer else ''}.lr"
