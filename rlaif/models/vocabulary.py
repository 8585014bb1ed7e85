"""Words as single tokens of a tokenizer."""

from __future__ import annotations

from typing import Any

from rlaif.errors import ConfigError

_SPACES = ("▁", "Ġ")
"""How SentencePiece and byte-level BPE write a space at the beginning of a token."""


def token_ids(tokenizer: Any, token: int | str) -> list[int]:
    """Return the ids of a token given as its id or its text: the one with a space before it first, then the bare one.

    Raises ConfigError, naming sampling.truncate_at, if the vocabulary has neither.
    """
    if isinstance(token, int):
        return [token]
    ids = {_with_spaces(name): id_ for name, id_ in tokenizer.get_vocab().items()}
    present = [ids[name] for name in (f" {token}", token) if name in ids]
    if not present:
        raise ConfigError(
            "the text of one token of the policy's vocabulary",
            repr(token),
            "Set sampling.truncate_at to text that the tokenizer has.",
        )
    return present


def spellings(tokenizer: Any, word: str) -> list[int]:
    """Return the ids of every single token that is this word, whatever its case and with or without a space before it.

    Raises ConfigError, naming label.choices, if there is none.
    """
    plain = word.strip().casefold()
    ids = []
    for name, id_ in tokenizer.get_vocab().items():
        if _with_spaces(name).strip().casefold() == plain:
            ids.append(id_)
    if not ids:
        raise ConfigError(
            "a word that is one token of the judge's vocabulary",
            repr(word),
            "Set label.choices and label.yes_no to other words.",
        )
    return sorted(ids)


def _with_spaces(name: str) -> str:
    for mark in _SPACES:
        name = name.replace(mark, " ")
    return name
