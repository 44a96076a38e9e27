"""``text:FILE``: a text to be gone on with, character by character.

A sample is a window of ``[data.columns] length`` characters, its target the same window one character later. Natural
ids are roles, where lines that end with a colon name who speaks (as in plays), else a hundred stretches of equal size.
The last fifth of each id's windows tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from potluck.core.errors import DataError
from potluck.data.dataset import TEST_SHARE, Dataset, dataset
from potluck.data.source import Reading, Source, existing
from potluck.tasks.task import IGNORED

PADDING, FIRST = 0, 2
"""Token 0 stands behind the end of a window, 1 for a character that is not known, 2 and more for characters."""
CHUNKS = 100
LEAST_CHARACTERS = 1000
ROLE = re.compile(r"^([^\n:]{1,40}):[ \t]*$", re.MULTILINE)
LEAST_ROLES = 5
MOST_CHARACTERS = 5000


def read(path: Path, reading: Reading) -> Dataset:
    """Windows of the text, (n, length) int64, and the same one character later."""
    name, columns = f"text:{path}", reading.columns
    try:
        text = path.read_text(encoding=columns.encoding)
    except (UnicodeError, LookupError) as error:
        raise DataError(
            f"{path}: not in {columns.encoding} ({error}): save it as UTF-8, or say its own encoding in [data.columns]."
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if len(text) < LEAST_CHARACTERS:
        raise DataError(f"{path}: {len(text)} characters, expected at least {LEAST_CHARACTERS}: bring a longer text.")
    known = sorted(set(text))
    if len(known) > MOST_CHARACTERS:
        raise DataError(
            f"{path}: {len(known)} different characters, expected at most {MOST_CHARACTERS}: clean the text."
        )
    number = {character: place + FIRST for place, character in enumerate(known)}
    train: list[tuple[Tensor, Tensor]] = []
    test: list[tuple[Tensor, Tensor]] = []
    owners: list[Tensor] = []
    for stretch in _stretches(text):
        tokens = torch.tensor([number[character] for character in stretch], dtype=torch.int64)
        x, y = _windows(tokens, columns.length)
        held = max(1, round(TEST_SHARE * len(x))) if len(x) > 1 else 0
        owners.append(torch.full((len(x) - held,), len(train), dtype=torch.int64))
        train.append((x[: len(x) - held], y[: len(x) - held]))
        test.append((x[len(x) - held :], y[len(x) - held :]))
    tokens_known = ("end", "unknown", *known)
    (x_train, y_train), (x_test, y_test) = (
        tuple(torch.cat(column) for column in zip(*part, strict=True)) for part in (train, test)
    )
    return dataset(
        name,
        x_train,
        y_train,
        x_test,
        y_test,
        class_names=tokens_known,
        vocabulary=len(tokens_known),
        owner_train=torch.cat(owners),
    )


def _stretches(text: str) -> list[str]:
    """What each role says, all of it in one, the most talkative role first; or a hundred stretches of the text."""
    pieces = ROLE.split(text)
    roles: dict[str, list[str]] = {}
    for role, said in zip(pieces[1::2], pieces[2::2], strict=True):
        roles.setdefault(role.strip().lower(), []).append(said.strip("\n"))
    if len(roles) >= LEAST_ROLES:
        spoken = ["\n".join(said) for said in roles.values()]
        return sorted((one for one in spoken if len(one) > 1), key=lambda said: -len(said))
    size = -(-len(text) // CHUNKS)
    return [text[start : start + size] for start in range(0, len(text), size) if len(text[start : start + size]) > 1]


def _windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(n, length) windows one after the other, and the same one character later; the last one padded."""
    count = -(-(len(tokens) - 1) // length)
    x = torch.full((count * length,), PADDING, dtype=torch.int64)
    y = torch.full((count * length,), IGNORED, dtype=torch.int64)
    x[: len(tokens) - 1], y[: len(tokens) - 1] = tokens[:-1], tokens[1:]
    return x.reshape(count, length), y.reshape(count, length)


FORM = "text:FILE"
SOURCES = {
    "text": Source(
        form=FORM,
        summary="a text to be gone on with, character by character; roles or stretches are natural devices",
        read=lambda where, reading: read(existing(FORM, where, folder=False), reading),
        columns=True,
    )
}
