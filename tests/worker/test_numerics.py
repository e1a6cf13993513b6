"""The fingerprint of the build: the same for every process of it, whatever that process has done before."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from worker import numerics

from ..kernels import LEVELS, VARIABLES, another_kernel, fingerprint_with, kernel, needs_avx2

SHOW = """
import sys
from threadpoolctl import threadpool_limits
from worker.numerics import fingerprint
threadpool_limits(int(sys.argv[1]), user_api="blas")
print(fingerprint())
"""
# Whose results IEEE 754 settles to the last bit, or which round nothing; products are in the digest as such.
SETTLED = set(
    "abs absolute add divide frexp greater isfinite isinf isnan ldexp less matmul maximum minimum multiply negative "
    "sign sqrt square subtract".split()
)


def shown_by_another_process(threads: int) -> str:
    ended = subprocess.run([sys.executable, "-c", SHOW, str(threads)], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def test_it_names_numpy_blas_kernel_and_bits() -> None:
    version, kernel, digest = numerics.fingerprint().split("/")
    assert version == f"numpy-{np.__version__}"
    libraries = [info for info in threadpool_info() if info["user_api"] == "blas"]
    assert kernel in {f"{info['internal_api']}-{info['version']}-{info['architecture']}" for info in libraries}
    assert len(bytes.fromhex(digest)) == 8


@pytest.mark.parametrize("threads", [1, 2])
def test_other_processes_agree_whatever_their_threads(threads: int) -> None:
    """Threads are the plan's affair. Otherwise a worker's second job would have its first one's fingerprint."""
    assert shown_by_another_process(threads) == numerics.fingerprint()


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def test_any_thread_may_hold_blas_to_its_threads_though_another_has_before() -> None:
    """A trainer has a thread for each job, and a forked process its parent's."""
    found = []

    def limit() -> None:
        numerics.limit_threads(1)
        found.append(blas_threads())

    with numerics.limit_threads(2):
        thread = threading.Thread(target=limit)
        thread.start()
        thread.join()
        assert found == [{1}]


def test_it_is_taken_with_one_thread_and_leaves_the_process_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], np.exp
    monkeypatch.setattr(np, "exp", lambda values: seen.append(blas_threads()) or original(values))
    numerics.fingerprint.cache_clear()
    with threadpool_limits(2, user_api="blas"):
        numerics.fingerprint()
        assert blas_threads() == {2}
    assert seen == [{1}, {1}]  # of each dtype


def test_the_digest_notices_another_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    original, known = np.exp, numerics._digest()
    monkeypatch.setattr(np, "exp", lambda values: np.nextafter(original(values), np.float32(9)))
    assert numerics._digest() != known


def test_the_digest_tells_builds_with_another_order_of_operations_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    known = numerics._digest()
    monkeypatch.setattr(numerics, "_ORDER", b"another")
    assert numerics._digest() != known


def test_every_function_that_may_round_otherwise_is_in_the_digest() -> None:
    packages = [Path(numerics.__file__).parent, Path(numerics.__file__).parents[1] / "core"]
    text = "".join(file.read_text() for package in packages for file in package.glob("*.py") if file.stem != "numerics")
    used = {name for name in re.findall(r"\bnp\.(\w+)", text) if isinstance(getattr(np, name, None), np.ufunc)}
    assert used - SETTLED == set(numerics.FUNCTIONS)


@needs_avx2
def test_blas_is_held_to_the_kernel_that_is_pinned() -> None:
    default, other = fingerprint_with(), another_kernel()
    found = [fingerprint_with(OPENBLAS_CORETYPE=other) for _ in range(2)]
    assert found[0] == found[1]
    assert kernel(found[0]) == other
    here = {name: os.environ[name] for name in VARIABLES if name in os.environ}  # this process may be pinned itself
    assert fingerprint_with(**here) == numerics.fingerprint()
    assert found[0].split("/")[2] != default.split("/")[2]  # not only by name
    assert kernel(fingerprint_with(OPENBLAS_CORETYPE="Haswell")) == "Haswell"


@needs_avx2
@pytest.mark.parametrize("level", ["X86_V3", "X86_V4"])
def test_numpys_own_loops_are_held_to_what_is_left_them(level: str) -> None:
    """X86_V4 is AVX-512, whose loops round some functions of some dtypes otherwise, and those alone."""
    if level not in LEVELS:
        pytest.skip(f"this processor has no {level}")
    disabled = " ".join(LEVELS[LEVELS.index(level) :])
    default, *found = fingerprint_with(), *(fingerprint_with(NPY_DISABLE_CPU_FEATURES=disabled) for _ in range(2))
    assert found[0] == found[1]
    assert found[0].split("/")[:2] == default.split("/")[:2]
    assert found[0].split("/")[2] != default.split("/")[2]


def test_another_librarys_blas_changes_nothing() -> None:
    """SciPy's wheel brings an OpenBLAS of its own: who has imported it still computes with NumPy's."""
    code = "{}from worker.numerics import fingerprint; print(fingerprint())"
    found = [
        subprocess.run([sys.executable, "-c", code.format(first)], capture_output=True, text=True, check=True).stdout
        for first in ("", "import scipy.linalg; ")
    ]
    assert found[0] == found[1]


def test_small_products_are_one_threads_of_kernels_that_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, largest in {"SkylakeX": 10**6, "Haswell": 0}.items():
        monkeypatch.setattr(numerics, "_numpys_blas", lambda name=name: {"architecture": name})
        assert (numerics.small_product(1), numerics.small_product(2)) == (largest, 0)
