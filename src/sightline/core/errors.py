"""Every error Sightline raises on purpose, and how its message names an argument.

`exit_code` is what the command line leaves with: 2 where the user can put it right (config, data, paths), 1 where the
run itself failed, 130 where it was interrupted.

What a caller sets has another name in every interface: the size of a batch is `data.batch_size` in a config,
`params['batch_size']` in the params dict, `batch_size=` in Python. Code below the interfaces knows the neutral name
alone, `batch_size`. An interface says what it calls its arguments with `argument_names`, and messages that are made
within it use these names: by `key=` of an error, or in a text as f"{arg.batch_size}"."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_NOTHING = object()
_names: ContextVar[Mapping[str, str | None]] = ContextVar("argument_names", default={})  # noqa: B039 never changed


@contextmanager
def argument_names(names: Mapping[str, str | None]) -> Iterator[None]:
    """For the block, messages name arguments as `names` has them: neutral name -> what the caller writes, or None for
    one that this interface does not have. May be used as a decorator."""
    token = _names.set(names)
    try:
        yield
    finally:
        _names.reset(token)


def current_argument_names() -> Mapping[str, str | None]:
    """The names in use. A new thread knows none: it takes them over with `adopt_argument_names`."""
    return _names.get()


def adopt_argument_names(names: Mapping[str, str | None]) -> None:
    """Uses `names` for as long as this thread lives."""
    _names.set(names)


def render_argument(name: str) -> str:
    """An argument as the caller writes it. Of a place within one, such as `network.layers[2]`, the beginning is
    looked up."""
    names, head = _names.get(), name
    while head and not names.get(head):
        head = head[: max(head.rfind("."), head.rfind("["), 0)]
    return f"{names[head]}{name[len(head) :]}" if head else name


def render_setting(name: str, value: object) -> str:
    """An argument with a value as the caller writes it, such as `data.preprocess.channels=3`. An interface may have a
    text of its own for one value, as `names["channels=3"]`."""
    return _names.get().get(f"{name}={value}") or f"{render_argument(name)}={value}"


class _Arguments:
    """`arg.batch_size` is `render_argument("batch_size")`."""

    def __getattr__(self, name: str) -> str:
        return render_argument(name)


arg = _Arguments()


def render_hint(hint: str) -> str:
    """A hint with {names} of arguments as the caller writes them; an empty string where the caller lacks one of
    them."""
    names = _names.get()
    used = re.findall(r"\{(\w+)\}", hint)
    if any(name in names and names[name] is None for name in used):
        return ""
    return re.sub(r"\{(\w+)\}", lambda match: render_argument(match[1]), hint)


class SightlineError(Exception):
    """Base of all errors below; catching it catches every mistake Sightline reports.

    `key` is the neutral name of the argument that is wrong, `found` its value, `expected` what is allowed, `hint` what
    to do; the message is made of those that are given, after `message`."""

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
    """The data set cannot be used as it is; names the file and the row."""


class ImageError(DataError):
    """One image is damaged, unreadable or too large; names it. What `data.on_bad=skip` leaves out."""


class ModelError(SightlineError):
    """The network cannot take these images or does not answer with one number per class; names the layer."""


class ArtifactError(SightlineError):
    """A run directory or an exported model is missing, damaged, or needs code it may not load."""


class AnotherTrainingError(ArtifactError):
    """The directory holds a training that is not the one asked for; nothing in it is overwritten."""


class MissingExtraError(SightlineError):
    """An optional library is missing or broken; names the extra to install."""


class RunFailedError(SightlineError):
    """Training itself failed; the last good checkpoint is kept."""

    exit_code = 1


class DivergedError(RunFailedError):
    """The loss rose above what was set as its limit; names the step."""


class NonFiniteLossError(DivergedError):
    """The loss became NaN or infinite; names the step."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the valid name closest to `name`, or an empty string when none is close."""
    listed = sorted(set(options))
    match = difflib.get_close_matches(name, listed, n=5, cutoff=0.6)
    match.sort(key=lambda option: sorted(option) != sorted(name))  # two letters exchanged is the likeliest slip
    if not match:  # Adam for adam, BatchNorm2d for batchnorm2d
        match = [option for option in listed if option.lower() == name.lower()]
    return f" Did you mean '{match[0]}'?" if match else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says that is not blank, or its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def join_names(names: Iterable[str], limit: int = 12) -> str:
    """`a, b, c` with at most `limit` names, and how many more there are."""
    listed = list(names)
    more = f", … ({len(listed) - limit} more)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
