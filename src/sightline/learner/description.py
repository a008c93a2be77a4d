"""Describes Python objects as plain values that two processes can compare: settings, code of functions, data digests.

A description consists of dicts, lists, strings and numbers. Keys that start with "@" are added by the describer; all
others are names from the object. Describing reads no random generator and calls no user code except `__len__` of data.
A description never contains a memory address."""

import functools
import re
import types
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sightline.learner.bytecode import (
    code_info,
    entries_of,
    functions_of,
    is_installed,
    is_library,
    made_by_library,
    members_of,
    methods_of,
    moving_attributes,
    name_of,
    own_classes,
    reads_of,
)
from sightline.learner.contents import (
    MANY,
    SHORT,
    Contents,
    Digests,
    Sampling,
    digest_of,
    has_files,
    is_path,
    is_plain,
    plain_value,
    shape_of,
)

_DEPTH = 40
_WITHOUT_EFFECT = frozenset(
    (
        *("training", "inplace", "fused_attn", "grad_checkpointing", "gradient_checkpointing", "name_or_path"),
        *("device", "epoch", "history"),
    )
)
"""Attributes that do not change what is computed, or that change during training."""
_WITHOUT_DATA = ("torch.", "threading", "_thread", "logging", "random", "numpy.random")
"""Modules whose objects hold no data that could be compared."""
_SCHEDULER_STATE = ("optimizer", "base_lrs", "last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i")
_SCHEDULER_ARGUMENTS = frozenset(
    ("_schedulers", "_milestones", "_schedule_phases", "_anneal_func_type", "_scale_fn_ref")
)
"""Attributes of torch's schedulers: the state that changes with each step, and constructor arguments that are stored
under a private name."""
_INTERNAL = frozenset(vars(nn.Module()))
_CLOCK = (1e9, 1e10)
_DATE_AND_TIME = re.compile(r"(19|20)\d\d[-_.]?\d\d[-_.]?\d\d[T _-]*\d\d[-_:.h]?\d\d")
_DEVICE = re.compile(r"(cpu|cuda|mps)(:\d+)?")
_IDENTIFIER = re.compile(r"[0-9a-f]{8}(-?)([0-9a-f]{4}\1){3}[0-9a-f]{12}", re.IGNORECASE)
_CONTAINERS = (dict, types.MappingProxyType, list, tuple, set, frozenset, deque)
_CALLABLES: tuple[type, ...] = (
    *(types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType),
    *(types.MethodDescriptorType, np.ufunc),
)


class Describer:
    """Makes descriptions of objects.

    `named` maps names to objects that are described elsewhere and appear here only by name. `digests` caches the
    digests of arrays for the other describers of the same call. With `values`, the buffers of a network, such as the
    class weights of a loss, are compared by value. `calls` are names that the calling code reads. `unknown` lists
    objects that could not be described."""

    def __init__(
        self,
        named: Mapping[str, object] | None = None,
        digests: Digests | None = None,
        values: bool = False,
        calls: frozenset[str] = frozenset(),
        sampling: Sampling = Sampling(),
    ):
        self._named = {id(value): name for name, value in (named or {}).items() if value is not None}
        self._values = values
        self._calls = calls  # names read by the code that uses the described object
        self._changed: dict[tuple[type, frozenset[str]], tuple[set[str], set[str]]] = {}
        self._contents = Contents(self.value, {} if digests is None else digests, sampling)
        self.unknown = self._contents.unknown
        self._known: dict[tuple[int, frozenset[str] | None], tuple[object, Any]] = {}
        self._depth = 0
        self._data_count = 0  # number of arrays and lists in the attributes of the last described object

    def value(self, value: Any, read: frozenset[str] | None = None) -> Any:
        """Returns the description of any object.

        `read` are the names that the calling function reads. An object without a custom `__call__` is then described
        only by its attributes with these names."""
        if is_plain(value):
            return plain_value(value)
        if id(value) in self._named:
            return self._named[id(value)]
        key = (id(value), read)
        if key in self._known:
            return self._known[key][1]
        self._known[key] = (value, "@again")  # the value for an object that contains itself
        self._depth += 1
        try:
            description = self._described(value, read) if self._depth < _DEPTH else name_of(type(value))
        except Exception as error:  # an error in a user's object must not stop training
            self.unknown.append(f"a {name_of(type(value))} ({type(error).__name__})")
            description = {"@class": name_of(type(value))}
        self._depth -= 1
        self._known[key] = (value, description)
        return description

    def _described(self, value: Any, read: frozenset[str] | None) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            return self._contents.array(value)
        if isinstance(value, torch.Generator):
            is_custom = value is not torch.default_generator
            return {"@class": "torch.Generator"} | ({"initial_seed": value.initial_seed()} if is_custom else {})
        if isinstance(value, nn.Module):
            return self.network(value)
        if isinstance(value, LRScheduler | ReduceLROnPlateau):
            return self.object(value, without=_SCHEDULER_STATE, private=_SCHEDULER_ARGUMENTS)
        if isinstance(value, functools.partial):
            names = {"@class": "partial", "function": self.value(value.func, read)}
            return names | {"arguments": self.value(value.args), "keywords": self.value(value.keywords)}
        is_own_code = isinstance(value, types.FunctionType) and not is_installed(value)
        if not is_own_code and isinstance(getattr(value, "__wrapped__", None), types.FunctionType | types.MethodType):
            return self.value(value.__wrapped__, read)
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, types.MethodType):
            return self.method(value)
        if isinstance(value, _CALLABLES):
            owner = getattr(value, "__self__", None)
            owned = owner is not None and not isinstance(owner, types.ModuleType | type)
            return {"@class": name_of(value)} | ({"object": self.value(owner)} if owned else {})
        if isinstance(value, type):
            return self._class(value, read)
        if isinstance(value, types.ModuleType):
            if is_library(value.__name__):
                return value.__name__
            return {name: self.value(vars(value)[name], read) for name in sorted((read or set()) & set(vars(value)))}
        if isinstance(value, _CONTAINERS):
            if hasattr(value, "_fields") or is_library(type(value).__module__):
                return self.container(value, read)
            items = self._contents.kept(value, lambda: self.container(_builtin(value)))
            return self.object(value, read) | {"items": items}
        if type(value).__module__.startswith("pandas.") and hasattr(value, "to_numpy"):
            return self.table(value)
        if read is None and isinstance(value, torch.utils.data.Dataset):
            return self.dataset(value)
        return self.object(value, read)

    # --- code

    def function(self, function: types.FunctionType) -> Any:
        """Describes a function by its code and the values of the outer variables that it uses."""
        if is_installed(function):
            return {"@class": name_of(function)}
        name = name_of(function)
        description = {"@class": name, "@code": {name: code_info(function.__code__).digest}}
        return description | {"@uses": self._uses(function)}

    def method(self, method: types.MethodType) -> Any:
        """Describes a bound method by its code, that of the methods it calls, and the attributes they read.

        For an object that is described elsewhere, attributes set by library classes are omitted."""
        owner, name = method.__self__, method.__name__
        if isinstance(owner, type) or not functions_of(method.__func__):
            return self.value(method.__func__)
        code, uses, read = self._reachable(type(owner), [name])
        if id(owner) in self._named:
            read -= made_by_library(type(owner))
        with self._called_by(frozenset((name,))):
            attributes = self._attributes(owner, read)
        return {"@class": name, "@code": code, "@uses": uses, "@attributes": attributes}

    def _class(self, cls: type, read: frozenset[str] | None) -> Any:
        if is_library(cls.__module__):
            return name_of(cls)
        code, uses, _ = self._reachable(cls, sorted(name for name, member in vars(cls).items() if functions_of(member)))
        names = sorted((read or set()) & set(vars(cls)))
        attributes = {name: plain_value(vars(cls)[name]) for name in names if is_plain(vars(cls)[name])}
        return {"@class": name_of(cls), "@code": code, "@uses": uses, "@attributes": attributes}

    def _reachable(self, cls: type, entries: Iterable[str]) -> tuple[dict[str, str], dict[str, Any], frozenset[str]]:
        """Returns (code digests by name, used values, names read) of the methods reachable from `entries`."""
        code: dict[str, str] = {}
        uses: dict[str, Any] = {}
        read: set[str] = set()
        for owner, name, function in methods_of(cls, entries):
            info = code_info(function.__code__)
            key = f"{name_of(owner)}.{name}"
            while key in code:
                key = f"the decorator of {key}"
            code[key] = info.digest
            read |= info.reads
            for variable, value in self._uses(function, getattr(function, "__wrapped__", None)).items():
                uses[f"{name}.{variable}" if uses.get(variable, value) != value else variable] = value
        return code, uses, frozenset(read)

    @contextmanager
    def _called_by(self, names: frozenset[str]) -> Iterator[None]:
        """A context in which `names` count as read by the code that uses the described object."""
        outer, self._calls = self._calls, self._calls | names
        try:
            yield
        finally:
            self._calls = outer

    def _uses(self, function: types.FunctionType, without: object = None) -> dict[str, Any]:
        code = function.__code__
        info = code_info(code)
        variables: dict[str, Any] = {}
        for name in info.loads:
            if name in function.__globals__:
                variables[name] = function.__globals__[name]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                variables[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        defaults = function.__defaults__ or ()
        positional = code.co_varnames[: code.co_argcount]
        variables |= dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
        variables |= function.__kwdefaults__ or {}
        described = {}
        for name, value in sorted(variables.items()):
            if name == "__class__" or name in info.rebinds or value is function or _is_circumstance(value):
                continue
            if value is not None and value is without:
                continue
            if name in info.mutates and _can_change(value):
                continue
            described[name] = self.value(value, info.reads)
        return described

    # --- objects

    def object(
        self,
        value: Any,
        read: frozenset[str] | None = None,
        without: Iterable[str] = (),
        private: frozenset[str] = frozenset(),
    ) -> Any:
        """Describes an object by its class, its attributes and, for a user's class, the code of its methods."""
        cls = type(value)
        description: dict[str, Any] = {"@class": name_of(cls)}
        library = is_library(cls.__module__)
        if isinstance(value, Optimizer | torch.device | torch.Stream):
            return description
        if isinstance(value, torch.jit.ScriptFunction):
            return description | {"@code": {"code": digest_of(str(value.code))}}
        reads: frozenset[str] = frozenset()
        if not library:
            entries = entries_of(cls) if read is None else [*entries_of(cls), *sorted(read)]
            code, uses, reads = self._reachable(cls, entries)
            description |= {"@code": code, "@uses": uses}
            read = None if read is None or "__call__" in entries_of(cls) else read | reads
        before = self._contents.count
        with self._called_by(reads):
            attributes = self._attributes(value, read, without, reads | private)
        self._data_count = self._contents.count - before
        if (
            read is None
            and library
            and not attributes
            and not callable(value)
            and not cls.__module__.startswith(_WITHOUT_DATA)
        ):
            self.unknown.append(f"a {name_of(cls)}")
        return description | {"@settings" if library else "@attributes": attributes}

    def table(self, value: Any) -> Any:
        """Describes a pandas object by its columns."""
        if not hasattr(value, "columns"):
            return self._contents.kept(value, lambda: self._contents.array(value.to_numpy(), keep=False))
        columns = self._contents.kept(value, lambda: {
            str(name): self._contents.array(value[name].to_numpy(), keep=False) for name in value.columns
        })  # fmt: skip
        return {"@class": name_of(type(value)), "columns": columns}

    def _attributes(
        self,
        value: Any,
        read: frozenset[str] | None,
        without: Iterable[str] = (),
        private: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:
        """The attributes of an object that its methods do not change and that do not depend on where or when it runs.

        Names with a leading "_" are included only if they are in `private`, class attributes only if code reads
        them."""
        cls = type(value)
        reads = self._calls | private | (read or frozenset())
        changing, mutated = self._moving(cls, reads)
        library = is_library(cls.__module__)
        described = {}
        for name, item in sorted((_class_fields(cls, reads) | _fields(value)).items()):
            if name in changing or name in _WITHOUT_EFFECT or name in without or _is_circumstance(item):
                continue
            if name not in private if read is None and name.startswith("_") else read is not None and name not in read:
                continue
            if (library and "version" in name) or (name in mutated and _can_change(item)):
                continue
            if isinstance(value, nn.Module) and name in _INTERNAL:
                continue
            described[name] = self.value(item, read)
        return described

    def _moving(self, cls: type, calls: frozenset[str] = frozenset()) -> tuple[set[str], set[str]]:
        key = cls, calls & members_of(cls)
        if key not in self._changed:
            self._changed[key] = moving_attributes(*key)
        return self._changed[key]

    def network(self, model: nn.Module) -> Any:
        """Describes every submodule by its class, settings, code and parameters.

        Parameters are described by dtype, shape and whether they are trained."""
        layers: dict[str, Any] = {}
        names: dict[int, str] = {}
        classes = {type(module) for module in model.modules()}
        with self._called_by(frozenset().union(*(reads_of(cls, entries_of(cls)) for cls in classes))):
            for name, module in model.named_modules(remove_duplicate=False):
                if id(module) in names:
                    layers[name] = {"@class": f"the same as '{names[id(module)]}'"}
                    continue
                names[id(module)] = name
                layers[name] = self._layer(module, name, names)
        return {"@layers": layers}

    def _layer(self, module: nn.Module, path: str, names: dict[int, str]) -> dict[str, Any]:
        if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
            description: dict[str, Any] = {"@class": name_of(type(module))}
            with suppress(Exception):  # a module without `forward` has no code
                description["@code"] = {"code": digest_of(str(module.code))}
            return description | {"@parameters": {name: shape_of(value) for name, value in module.named_parameters()}}
        description = self.object(module)
        parameters = {}
        for name, value in module._parameters.items():
            shared = None if value is None else names.setdefault(id(value), f"{path}.{name}".lstrip("."))
            is_first = shared in (None, f"{path}.{name}".lstrip("."))
            parameters[name] = shape_of(value) if is_first else f"the same as '{shared}'"
        moving = set().union(*self._moving(type(module), self._calls))
        compared = {*module._buffers} if self._values else module._non_persistent_buffers_set - moving
        buffers = {name: self._contents.array(value) if name in compared and value is not None else shape_of(value)
                   for name, value in module._buffers.items()}  # fmt: skip
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        hooks = [self.value(hook) for hook in hooks if not _is_library_function(hook)]
        description |= {"forward_hooks": hooks} if hooks else {}
        return description | {"@parameters": parameters, "@buffers": buffers}

    def container(self, value: Any, read: frozenset[str] | None = None) -> Any:
        """Describes a short container by its items, and a long one by a digest of them."""
        items: Any
        if isinstance(value, Mapping) and len(value) <= MANY:
            items = {self._contents.key(key): item for key, item in value.items()}
            selected = {key: item for key, item in items.items() if read and key in read}
            if len(selected or items) <= SHORT:
                return {key: self.value(item, read) for key, item in sorted((selected or items).items())
                        if not (isinstance(item, str) and _DEVICE.fullmatch(item))}  # fmt: skip
            items = selected or value
        elif isinstance(value, set | frozenset) and len(value) <= SHORT:
            items = sorted((self.value(item) for item in value), key=repr)
        else:
            items = value
        if len(items) <= SHORT and not has_files(items):
            return [self.value(item, read) for item in items]
        return self._contents.items(items)

    # --- data

    def loader(self, loader: Any) -> Any:
        """Describes a loader by its dataset and the settings that determine its batches."""
        if isinstance(loader, list | tuple):
            return {"@class": "list", "batches": len(loader), "content": self._contents.items(loader)}
        dataset = getattr(loader, "dataset", None)
        if dataset is None or not hasattr(loader, "batch_size"):
            return self.dataset(loader)
        description: dict[str, Any] = {"@class": name_of(type(loader)), "dataset": self.dataset(dataset)}
        if not is_library(type(loader).__module__):
            description["@code"], description["@uses"], _ = self._reachable(type(loader), entries_of(type(loader)))
        for name in ("batch_size", "drop_last", "collate_fn", "worker_init_fn", "generator"):
            description[name] = self.value(getattr(loader, name, None))
        sampler, batches = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
        if batches is not None and (
            description["batch_size"] is None or type(batches) is not torch.utils.data.BatchSampler
        ):
            description["batch_sampler"] = self._sampler(batches)
        if sampler is not None:
            description["sampler"] = self._sampler(sampler)
        return description

    def _sampler(self, sampler: Any) -> Any:
        if is_plain(sampler) or isinstance(sampler, Mapping | Sequence):
            return self.value(sampler)
        batches = isinstance(sampler, torch.utils.data.BatchSampler)
        description = self.object(sampler, without=("data_source", "dataset", *(("sampler",) if batches else ())))
        if batches:
            description["sampler"] = self._sampler(sampler.sampler)
        if isinstance(sampler, torch.utils.data.RandomSampler):
            description["num_samples"] = sampler.num_samples
        return description

    def dataset(self, dataset: Any) -> Any:
        """Describes a dataset by its length, its attributes with digests of their data, and its code.

        If that does not determine the samples, `unknown` lists them."""
        if isinstance(dataset, Sequence | Mapping) and is_library(type(dataset).__module__):
            return {"@class": name_of(type(dataset)), "content": self._contents.items(dataset)}
        contents = self._contents
        files, unknown_before = contents.files, len(self.unknown)
        description = self.object(dataset)
        has_data = self._data_count > 0
        kind = "@settings" if "@settings" in description else "@attributes"
        attributes = description.setdefault(kind, {})
        for name, item in _fields(dataset).items():
            if name.startswith("_") and isinstance(item, list | np.ndarray | Tensor) and _is_torchvision(dataset):
                attributes[name] = self.value(item)
                has_data = True
        if _is_torchvision(dataset):
            attributes.pop("transforms", None)  # derived from `transform` and `target_transform`
        if not has_data and len(self.unknown) == unknown_before:
            self.unknown.append(f"the samples of {name_of(type(dataset))}, which are not in memory")
        elif contents.files > files or _is_torchvision(dataset):  # the files may have been moved to another directory
            for name in [name for name, item in attributes.items() if isinstance(item, str) and is_path(item)]:
                del attributes[name]
        try:
            description["samples"] = len(dataset)
        except Exception:  # an iterable dataset has no length, or its `__len__` fails
            description["samples"] = None
        return description


def _class_fields(cls: type, read: Iterable[str]) -> dict[str, Any]:
    """The class attributes among `read` that the user's classes define."""
    owners = [vars(owner) for owner in own_classes(cls)]
    names = {name for name in read if not name.startswith("__")}
    fields = {name: next(owner[name] for owner in owners if name in owner) for name in names & members_of(cls)}
    return {name: item for name, item in fields.items() if not hasattr(type(item), "__get__")}


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of an object, sorted by name."""
    fields = dict(getattr(value, "__dict__", {}))
    for owner in type(value).__mro__:
        for name in [name for name in fields if isinstance(vars(owner).get(name), functools.cached_property)]:
            del fields[name]  # computed from other attributes
        slots = vars(owner).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if isinstance(vars(owner).get(name), types.MemberDescriptorType) and hasattr(value, name):
                fields[name] = getattr(value, name)
    return dict(sorted((str(name), item) for name, item in fields.items()))


def _is_circumstance(value: Any) -> bool:
    """Whether a value belongs to the process, not the experiment: a time, a device or a random identifier."""
    if isinstance(value, str):
        return bool(_DATE_AND_TIME.search(value) or _DEVICE.fullmatch(value) or _IDENTIFIER.fullmatch(value))
    return isinstance(value, torch.device | uuid.UUID) or (isinstance(value, float) and _CLOCK[0] < value < _CLOCK[1])


def _can_change(value: Any) -> bool:
    return not (is_plain(value) or callable(value) or isinstance(value, types.ModuleType))


def _is_library_function(value: Any) -> bool:
    """Whether a function is installed code, such as the hooks of `half()`."""
    function = getattr(value, "__func__", value)
    return isinstance(function, types.FunctionType) and is_installed(function)


def _is_torchvision(value: Any) -> bool:
    return type(value).__module__.startswith("torchvision.")


def _builtin(value: Any) -> Any:
    """The items of an instance of a container subclass, as a plain dict or list."""
    if isinstance(value, dict):
        return dict(dict.items(value))
    kind = next(kind for kind in _CONTAINERS if isinstance(value, kind))
    return [*kind.__iter__(value)]
