"""The fingerprint of the build: the same for every process of it, whatever that process has done before."""

import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from worker import numerics

SHOW = """
import sys
from threadpoolctl import threadpool_limits
from worker.numerics import fingerprint
threadpool_limits(int(sys.argv[1]), user_api="blas")
print(fingerprint())
"""


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


def test_it_is_taken_with_one_thread_and_leaves_the_process_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], np.exp
    monkeypatch.setattr(np, "exp", lambda values: seen.append(blas_threads()) or original(values))
    numerics.fingerprint.cache_clear()
    with threadpool_limits(2, user_api="blas"):
        numerics.fingerprint()
        assert blas_threads() == {2}
    assert seen == [{1}]


def test_the_digest_notices_another_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    original, known = np.exp, numerics._digest()
    monkeypatch.setattr(np, "exp", lambda values: np.nextafter(original(values), np.float32(9)))
    assert numerics._digest() != known


def test_another_librarys_blas_changes_nothing() -> None:
    """SciPy's wheel brings an OpenBLAS of its own: who has imported it still computes with NumPy's."""
    code = "{}from worker.numerics import fingerprint; print(fingerprint())"
    found = [
        subprocess.run([sys.executable, "-c", code.format(first)], capture_output=True, text=True, check=True).stdout
        for first in ("", "import scipy.linalg; ")
    ]
    assert found[0] == found[1]


def test_small_products_are_one_threads_of_kernels_that_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel, largest in {"SkylakeX": 10**6, "Haswell": 0}.items():
        monkeypatch.setattr(numerics, "_numpys_blas", lambda kernel=kernel: {"architecture": kernel})
        assert (numerics.small_product(1), numerics.small_product(2)) == (largest, 0)
