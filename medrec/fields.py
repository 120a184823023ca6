"""The kinds of fields that cards and settings are made of: bounded numbers, names, digests, patterns.

Owns nothing else. Invariant: unknown fields are mistakes, and nothing changes after loading.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


def mistakes(error: ValidationError) -> list[str]:
    """Every mistake in a file, with its place."""
    places = ((".".join(map(str, m["loc"])) or "the whole file", m["msg"]) for m in error.errors())
    return [f"{place}: {what.removeprefix('Value error, ')}" for place, what in places]


class Frozen(BaseModel):
    """Unknown fields are mistakes, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
