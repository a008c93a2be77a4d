"""Messages of the parts below, in the words of who called."""

from __future__ import annotations

import pytest

from sightline.errors import ConfigError, DataError
from sightline.wording import reworded

WORDS = {"data.root": "datadir", "data.root=DIR": "the first argument", "; skip it": ""}


def test_every_word_is_exchanged_the_longer_one_first_and_the_rest_of_the_error_stays() -> None:
    error = DataError("data.root: 'a' is damaged; skip it. Set data.root=DIR.")
    error.add_note("In epoch 3.")
    with pytest.raises(DataError) as told, reworded(WORDS):
        raise error
    assert str(told.value) == "datadir: 'a' is damaged. Set the first argument."
    assert told.value.__notes__ == ["In epoch 3."]
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", [ConfigError("trainer: no such key."), KeyError("data.root")])
def test_an_error_without_such_a_word_or_of_somebody_else_is_the_same_one(error: Exception) -> None:
    with pytest.raises(type(error)) as told, reworded(WORDS):
        raise error
    assert told.value is error
    assert told.value.__cause__ is None
