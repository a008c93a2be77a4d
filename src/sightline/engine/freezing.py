"""Parts of a network that are not trained: for the first epochs, or ever."""

import weakref
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sightline.core.errors import ConfigError, arg, join_names
from sightline.core.locate import is_below, match_layers


class Freeze:
    """For the first `epochs` epochs everything but the layers named in `heads` is frozen; what `patterns` match (names
    or patterns of layers or parameters, see `locate.match_layers`) is frozen always. With `statistics`, batch
    normalisation outside `heads` is always in evaluation mode: it normalises by the running statistics that it has, in
    training as in evaluation, and keeps them, while its scales and shifts are trained.

    A frozen parameter has no gradient, and an optimiser leaves it alone; a frozen layer is in evaluation mode, so that
    its running statistics stay and its dropout is off. Both are bit for bit what they were."""

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
        """Raises ConfigError for a pattern that matches nothing, and where nothing would be left to train."""
        if self.epochs and not self.heads:
            raise ConfigError(
                f"{arg.freeze_epochs}: it is not known which layer of this network is its head. Leave it at 0, and "
                f"name what is not to be trained in {arg.freeze}."
            )
        for epoch in {0, self.epochs}:
            frozen, _ = self.frozen(model, epoch)
            if all(name in frozen or not parameter.requires_grad for name, parameter in model.named_parameters()):
                key = arg.freeze_epochs if epoch < self.epochs and not self.patterns else arg.freeze
                raise ConfigError(
                    f"{key}: nothing would be left to train in epoch {epoch}: {join_names(self.patterns)}"
                    f"{' and all but the head' if epoch < self.epochs else ''} is the whole network. Freeze less."
                )

    def apply(self, model: nn.Module, epoch: int) -> None:
        """Freezes what is frozen in `epoch`, and gives back what is no longer: what the user had frozen himself, or put
        into evaluation mode, stays so. Calling it again changes nothing."""
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        if self._model is None or self._model() is not model:
            self._model = weakref.ref(model)
            self._saved_requires_grad, self._saved_training = {}, {}
        parameters, layers = dict(model.named_parameters()), dict(model.named_modules())
        frozen, resting = self.frozen(model, epoch)
        for name in [name for name in self._saved_requires_grad if name not in frozen]:
            parameters[name].requires_grad_(self._saved_requires_grad.pop(name))
        for name in [name for name in self._saved_training if name not in resting]:
            layers[name].training = self._saved_training.pop(name)
        for name in frozen:
            self._saved_requires_grad.setdefault(name, parameters[name].requires_grad)
            parameters[name].requires_grad_(False)
            parameters[name].grad = None
        for name in resting:
            self._saved_training.setdefault(name, layers[name].training)
            layers[name].training = False

    def frozen(self, model: nn.Module, epoch: int) -> tuple[set[str], set[str]]:
        """The names of the parameters and of the layers that are frozen in `epoch`."""
        parameters = [name for name, _ in model.named_parameters()]
        layers = dict(model.named_modules())
        found: set[str] = set()
        for position, pattern in enumerate(self.patterns):
            found.update(match_layers(pattern, [*parameters, *layers], key=f"{arg.freeze}[{position}]"))
        if epoch < self.epochs:
            # what holds the head is not at rest: it may act on its own mode
            holders = {name for name in layers if any(is_below(head, [name]) for head in self.heads)}
            found.update(
                name for name in (*parameters, *layers) if not is_below(name, self.heads) and name not in holders
            )
        frozen = found & set(parameters)
        resting = found & set(layers)
        if self.statistics:
            resting |= {
                name
                for name, layer in layers.items()
                if isinstance(layer, _BatchNorm) and layer.running_mean is not None and not is_below(name, self.heads)
            }
        for name, layer in layers.items():
            own = [f"{name}.{item}" if name else item for item, _ in layer.named_parameters(recurse=False)]
            if own and set(own) <= frozen and not any(True for _ in layer.children()):
                resting.add(name)  # all its parameters were named one by one
        return frozen, resting
