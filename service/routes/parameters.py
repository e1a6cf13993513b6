"""Parameters that several routes take: bounded, so that every number fits the store's."""

from typing import Annotated

from fastapi import Path

LARGEST = 2**53
VersionNumber = Annotated[int, Path(ge=1, le=LARGEST)]
