"""``[data.columns]``: which column of a table is what."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class Columns(BaseModel):
    """Which column of a table is what, and how the file is written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    target: str | list[str] = Field(default="", description="What is to be learned; several numbers, or several marks.")
    text: str = Field(default="", description="A column of text: samples are its tokens, and nothing else.")
    features: list[str] = Field(default=[], description="The columns to learn from; empty: all that are nothing else.")
    drop: list[str] = Field(default=[], description="Columns that are left out.")
    categorical: list[str] = Field(default=[], description="Columns of numbers that are names, such as a month.")
    id: str | list[str] = Field(default="", description="Who a row belongs to: the natural devices.")
    time: str = Field(default="", description="When a row was made: the latest fifth (of each id) tests.")
    missing: Literal["error", "impute"] = Field(default="error", description="impute: the mean, and a mark beside it.")
    names: list[str] = Field(default=[], description="The names of the columns, where the file has no header.")
    delimiter: str = Field(default="", description="What stands between cells of a csv; empty: as the header tells.")
    decimal: Literal[".", ","] = "."
    encoding: str = "utf-8"
    tokens: Literal["words", "characters"] = "words"
    vocabulary: PositiveInt = Field(
        default=10_000, description="So many tokens of a text are known: the most frequent."
    )
    length: PositiveInt = Field(default=64, description="So many tokens of a text are read.")

    @property
    def targets(self) -> list[str]:
        """The columns to be learned."""
        return [self.target] if isinstance(self.target, str) and self.target else list(self.target)

    @property
    def ids(self) -> list[str]:
        """The columns that together name a device."""
        return [self.id] if isinstance(self.id, str) and self.id else list(self.id)
