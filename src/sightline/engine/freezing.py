"""Freezes parts of a network, for the first epochs or for the entire training."""

import weakref
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sightline.core.errors import ConfigError, arg, join_names
from sightline.core.locate import is_below, match_layers


class Freeze:
    """Freezes layers and parameters of a network, epoch by epoch.

    For the first `epochs` epochs everything except the layers named in `heads` is frozen. Layers and parameters that
    match `patterns` (see `locate.match_layers`) are always frozen. With `statistics`, batch normalisation outside
    `heads` is always in evaluation mode: it normalises by its running statistics and does not update them, while its
    scales and shifts are trained.

    A frozen parameter has no gradient, so the optimiser does not change it. A frozen layer is in evaluation mode, so
    its running statistics do not change and its dropout is off. Both stay bit for bit the same."""

    def __init__(
        self, heads: Sequence[str], epochs: int = 0, patterns: Sequence[str] = (), *, statistics: bool = False
    ):
        self.heads = tuple(heads)
        self.epochs = epochs
        self.patterns = tuple(patterns)
        self.statistics = statistics
        self._model: weakref.ref[nn.Module] | None = None
        self._saved_requires_grad: dict[str, bool] = {}
        self._saved_training: dict[str, bool] = {}

    def check(self, model: nn.Module) -> None:
        """Raises ConfigError if a pattern matches nothing, or if an epoch would train no parameter."""
        if self.epochs and not self.heads:
            raise ConfigError(
                f"{arg.freeze_epochs}: the head layer of this network is not known. Set it to 0, and name the layers "
                f"to freeze in {arg.freeze}."
            )
        for epoch in {0, self.epochs}:
            frozen, _ = self.frozen(model, epoch)
            if all(name in frozen or not parameter.requires_grad for name, parameter in model.named_parameters()):
                key = arg.freeze_epochs if epoch < self.epochs and not self.patterns else arg.freeze
                frozen_parts = [join_names(self.patterns)] if self.patterns else []
                frozen_parts += ["all layers but the head"] if epoch < self.epochs else []
                raise ConfigError(
                    f"{key}: no parameter would be trained in epoch {epoch}. Frozen: "
                    f"{' and '.join(frozen_parts) or 'all parameters'}. Freeze fewer layers."
                )

    def apply(self, model: nn.Module, epoch: int) -> None:
        """Freezes what is frozen in `epoch`, and restores what is no longer frozen.

        Parameters that the user froze, and layers that the user set to evaluation mode, are restored to that state.
        Calling it again for the same epoch changes nothing."""
        model = getattr(model, "_orig_mod", model)  # the network inside torch.compile's wrapper
        if self._model is None or self._model() is not model:
            self._model = weakref.ref(model)
            self._saved_requires_grad, self._saved_training = {}, {}
        parameters, layers = dict(model.named_parameters()), dict(model.named_modules())
        frozen, eval_layers = self.frozen(model, epoch)
        for name in [name for name in self._saved_requires_grad if name not in frozen]:
            parameters[name].requires_grad_(self._saved_requires_grad.pop(name))
        for name in [name for name in self._saved_training if name not in eval_layers]:
            layers[name].training = self._saved_training.pop(name)
        for name in frozen:
            self._saved_requires_grad.setdefault(name, parameters[name].requires_grad)
            parameters[name].requires_grad_(False)
            parameters[name].grad = None
        for name in eval_layers:
            self._saved_training.setdefault(name, layers[name].training)
            layers[name].training = False

    def frozen(self, model: nn.Module, epoch: int) -> tuple[set[str], set[str]]:
        """Returns the names of the frozen parameters, and of the layers kept in evaluation mode, in `epoch`."""
        parameters = [name for name, _ in model.named_parameters()]
        layers = dict(model.named_modules())
        matched: set[str] = set()
        for position, pattern in enumerate(self.patterns):
            matched.update(match_layers(pattern, [*parameters, *layers], key=f"{arg.freeze}[{position}]"))
        if epoch < self.epochs:
            # a module that contains a head keeps its mode, since its forward may depend on it
            holders = {name for name in layers if any(is_below(head, [name]) for head in self.heads)}
            matched.update(
                name for name in (*parameters, *layers) if not is_below(name, self.heads) and name not in holders
            )
        frozen = matched & set(parameters)
        eval_layers = matched & set(layers)
        if self.statistics:
            eval_layers |= {
                name
                for name, layer in layers.items()
                if isinstance(layer, _BatchNorm) and layer.running_mean is not None and not is_below(name, self.heads)
            }
        for name, layer in layers.items():
            own_parameters = [f"{name}.{item}" if name else item for item, _ in layer.named_parameters(recurse=False)]
            if own_parameters and set(own_parameters) <= frozen and not any(True for _ in layer.children()):
                eval_layers.add(name)  # all its parameters were named individually
        return frozen, eval_layers
