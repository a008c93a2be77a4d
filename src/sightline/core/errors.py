"""The exceptions that Sightline raises on purpose, and the names that their messages use for arguments.

`exit_code` is the exit status of the command line: 2 if the user can fix the error (config, data, paths), 1 if the run
itself failed.

The same argument has a different name in each interface: the batch size is `data.batch_size` in a config,
`params['batch_size']` in the params dict and `batch_size=` in Python. Code below the interfaces knows only the neutral
name, `batch_size`. An interface sets its names with `argument_names`, and messages created within that block use them:
through `key=` of an error, or in a text as f"{arg.batch_size}"."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_NOTHING = object()
_names: ContextVar[Mapping[str, str | None]] = ContextVar("argument_names", default={})  # noqa: B039 never modified


@contextmanager
def argument_names(names: Mapping[str, str | None]) -> Iterator[None]:
    """Sets the argument names that messages use within the block. Also works as a decorator.

    `names` maps a neutral name to what the caller writes, or to None for an argument this interface does not have."""
    token = _names.set(names)
    try:
        yield
    finally:
        _names.reset(token)


def current_argument_names() -> Mapping[str, str | None]:
    """Returns the argument names in use. A new thread starts with none and sets them with `adopt_argument_names`."""
    return _names.get()


def adopt_argument_names(names: Mapping[str, str | None]) -> None:
    """Sets the argument names of the current thread until it ends."""
    _names.set(names)


def render_argument(name: str) -> str:
    """Returns an argument's name as the caller writes it. For a place inside an argument, such as `network.layers[2]`,
    the longest known prefix is replaced."""
    names, head = _names.get(), name
    while head and not names.get(head):
        head = head[: max(head.rfind("."), head.rfind("["), 0)]
    return f"{names[head]}{name[len(head) :]}" if head else name


def render_setting(name: str, value: object) -> str:
    """Returns an argument with a value as the caller writes it, such as `data.preprocess.channels=3`. An interface may
    define a separate text for one value, as `names["channels=3"]`."""
    return _names.get().get(f"{name}={value}") or f"{render_argument(name)}={value}"


class _Arguments:
    """Renders argument names as attributes: `arg.batch_size` is `render_argument("batch_size")`."""

    def __getattr__(self, name: str) -> str:
        return render_argument(name)


arg = _Arguments()


def render_hint(hint: str) -> str:
    """Returns a hint with each {name} replaced by the argument's name as the caller writes it. Returns an empty string
    if the interface does not have one of the arguments."""
    names = _names.get()
    used = re.findall(r"\{(\w+)\}", hint)
    if any(name in names and names[name] is None for name in used):
        return ""
    return re.sub(r"\{(\w+)\}", lambda match: render_argument(match[1]), hint)


class SightlineError(Exception):
    """Base class of all exceptions that Sightline raises on purpose.

    `key` is the neutral name of the wrong argument, `found` its value, `expected` what is allowed and `hint` what to
    do. The text consists of `message` followed by those of the others that are set."""

    exit_code = 2

    def __init__(
        self,
        message: str = "",
        *,
        key: str | None = None,
        found: Any = _NOTHING,
        expected: str | None = None,
        hint: str = "",
    ):
        self.key, self.expected, self.hint = key, expected, hint
        self.found = None if found is _NOTHING else found
        sentences = [message] if message else []
        if expected is not None:
            sentences.append(f"expected {expected}{'' if found is _NOTHING else f', found {found!r}'}.")
        if hint:
            sentences.append(render_hint(hint))
        text = " ".join(sentence for sentence in sentences if sentence)
        super().__init__(f"{render_argument(key)}: {text}" if key else text)


class ConfigError(SightlineError):
    """A key, value or `_target_` of the config is wrong."""


class DataError(SightlineError):
    """The dataset cannot be used. The message names the file and the row."""


class ImageError(DataError):
    """An image is damaged, unreadable or too large. The message names it; `data.on_bad=skip` skips these images."""


class ModelError(SightlineError):
    """The network cannot process these images or does not output one value per class. The message names the layer."""


class ArtifactError(SightlineError):
    """A run directory or an exported model is missing or damaged, or needs code that it may not load."""


class AnotherTrainingError(ArtifactError):
    """The directory holds a different training from the one requested. Nothing in it is overwritten."""


class MissingExtraError(SightlineError):
    """An optional library is missing or cannot be imported. The message says what to install."""


class RunFailedError(SightlineError):
    """The training failed. The last good checkpoint is kept."""

    exit_code = 1


class DivergedError(RunFailedError):
    """The training loss exceeded `divergence_threshold`. The message names the step."""


class NonFiniteLossError(DivergedError):
    """The loss became NaN or infinite. The message names the step."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the option closest to `name`, or an empty string if none is close."""
    listed = sorted(set(options))
    match = difflib.get_close_matches(name, listed, n=5, cutoff=0.6)
    match.sort(key=lambda option: sorted(option) != sorted(name))  # swapped letters are the likeliest typo
    if not match:  # names that differ in case only, such as BatchNorm2d and batchnorm2d
        match = [option for option in listed if option.lower() == name.lower()]
    return f" Did you mean '{match[0]}'?" if match else ""


def first_line(error: BaseException) -> str:
    """Returns the first non-blank line of an error's message, or the name of its type if the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def reason(error: BaseException) -> str:
    """Returns an error's message without its full stop, and `the key 'x' is missing` for a KeyError."""
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")


def join_names(names: Iterable[str], limit: int = 12) -> str:
    """Returns the names as `a, b, c`: at most `limit` of them, then how many more there are."""
    listed = list(names)
    more = f", … ({len(listed) - limit} more)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
