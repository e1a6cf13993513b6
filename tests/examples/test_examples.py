"""Each example runs as its users run it, with fewer steps where the whole takes long."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(script, *arguments):
    """What `script` prints; it must succeed without a warning."""
    command = [sys.executable, "-W", "error", EXAMPLES / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_xor_takes_a_hidden_layer(tmp_path):
    none, two, four = run("xor.py", "--steps", 300, "--plot", tmp_path / "xor.png").splitlines()
    assert none.count(": 0.500") == 4  # undecided everywhere: the last bit says how many are right
    assert two.endswith("4 of 4 right")
    assert four.endswith("4 of 4 right")
    assert is_png(tmp_path / "xor.png")


def test_functions_are_approximated(tmp_path):
    lines = run("approximation.py", "--steps", 600, "--plot", tmp_path / "functions.png").splitlines()
    mean_errors = {
        line.split(" hidden ")[0].strip(): float(line.split("mean error ")[1].split(",")[0]) for line in lines
    }
    assert mean_errors["sin"] < 0.05
    assert set(mean_errors) == {"sin", "step", "two jumps"}
    assert max(mean_errors.values()) < 0.1
    assert is_png(tmp_path / "functions.png")


def test_every_way_leads_down_the_surface(tmp_path):
    lines = run("surface.py", "--steps", 40, "--plot", tmp_path / "surface.png").splitlines()
    for line in lines:
        before, after = line.split("loss ")[1].split(" at ")[0].split(" -> ")
        assert float(after) < 0.5 * float(before)
    assert len(lines) == 4
    assert is_png(tmp_path / "surface.png")


def test_the_car_stays_on_the_road(tmp_path):
    assert "drove 118 m" in run("steering.py", "--epochs", 8, "--metres", 150, "--plot", tmp_path / "drive.png")
    assert is_png(tmp_path / "drive.png")


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def small_mnist(tmp_path):
    """Three training images and two test images of 2 x 2 pixels; half of the files are compressed."""
    write_idx(tmp_path / "train-images-idx3-ubyte", np.arange(12).reshape(3, 2, 2))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([5, 0, 4]))
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", np.arange(248, 256).reshape(2, 2, 2))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([7, 2]))
    return tmp_path


def test_mnist_as_csv(small_mnist):
    assert run("mnist_csv.py", small_mnist, small_mnist / "mnist.csv").startswith("5 rows")
    assert (small_mnist / "mnist.csv").read_text().splitlines() == [
        "row,label,pixel0,pixel1,pixel2,pixel3",
        "0,5,0,0.004,0.008,0.012",
        "1,0,0.016,0.02,0.024,0.027",
        "2,4,0.031,0.035,0.039,0.043",
        "3,7,0.973,0.976,0.98,0.984",
        "4,2,0.988,0.992,0.996,1",
    ]


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_mnist_files_that_are_none_are_named(small_mnist, damage):
    path = small_mnist / "t10k-labels-idx1-ubyte"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "cut" else b"PK" + data)
    command = [sys.executable, EXAMPLES / "mnist_csv.py", small_mnist, small_mnist / "mnist.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "t10k-labels-idx1-ubyte" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (small_mnist / "mnist.csv").exists()
