"""MNIST's files as one table for the service: 60,000 training and then 10,000 test images.

Usage: python examples/mnist_csv.py FOLDER OUT.csv

FOLDER holds train-images-idx3-ubyte, train-labels-idx1-ubyte and the two t10k files, each as it is or with .gz. The
columns: row (0 to 69999, which mnist.yaml splits by), label, and pixel0 to pixel783, from 0 to 1, with three decimals.
"""

import argparse
import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = ("train", "t10k")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an idx file of bytes; raises ValueError where the file is something else, or cut off."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{path}: not an idx file of bytes")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if len(values) != np.prod(shape):
        raise ValueError(f"{path}: {len(values)} bytes of data where its head says {' x '.join(map(str, shape))}")
    return values.reshape(shape)


def find(folder: Path, name: str) -> Path:
    """The file `name` or `name`.gz in `folder`; raises FileNotFoundError."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder} has neither {name} nor {name}.gz")


def read_mnist(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (70000, 784) and labels (70000,), those for training first."""
    images = [read_idx(find(folder, f"{part}-images-idx3-ubyte")) for part in PARTS]
    labels = [read_idx(find(folder, f"{part}-labels-idx1-ubyte")) for part in PARTS]
    return np.concatenate([part.reshape(len(part), -1) for part in images]), np.concatenate(labels)


def write_csv(images: NDArray[Any], labels: NDArray[Any], path: Path) -> None:
    """One line an image, under a line of names."""
    names = ("row", "label", *(f"pixel{k}" for k in range(images.shape[1])))
    shades = [f"{shade / 255:.3f}".rstrip("0").rstrip(".") or "0" for shade in range(256)]
    with path.open("w", encoding="ascii") as file:
        file.write(",".join(names) + "\n")
        for row, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
            file.write(f"{row},{label},{','.join([shades[pixel] for pixel in image])}\n")


def main(arguments: list[str] | None = None) -> int:
    """Convert. Exit code 1, with what is wrong, where the files are not as they should be."""
    parser = argparse.ArgumentParser(description="MNIST's idx files as one CSV.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    try:
        images, labels = read_mnist(options.folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_csv(images, labels, options.out)
    sys.stdout.write(f"{len(labels)} rows in {options.out}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
