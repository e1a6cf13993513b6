"""Names that outlive a crash: a file's name is on the disk only once its folder is synced."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename alone is not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_durably(folder: Path) -> None:
    """Make `folder`, and those above it that are missing, so that they are there after a crash."""
    if not folder.is_dir():
        make_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
