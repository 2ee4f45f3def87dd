"""Lists in bodies."""

from typing import Annotated, TypeVar

from pydantic import Field

T = TypeVar("T")
# Of several wrong items only the first is told: an error for each of a million takes ten seconds and a gigabyte.
JsonList = Annotated[list[T], Field(fail_fast=True)]
