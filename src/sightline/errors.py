"""Every error Sightline raises on purpose. `exit_code` is what the command line leaves with: 2 where the user can put
it right (config, data, paths), 1 where the run itself failed, 130 where it was interrupted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SightlineError(Exception):
    """Base of all errors below; catching it catches every mistake Sightline reports."""

    exit_code = 2


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


def nearest(name: str, options: Iterable[str]) -> str:
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


def listing(names: Iterable[str], limit: int = 12) -> str:
    """`a, b, c` with at most `limit` names, and how many more there are."""
    listed = list(names)
    more = f", … ({len(listed) - limit} more)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
