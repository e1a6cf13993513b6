"""Which build computes here: the weights' hash holds for equal fingerprints.

NumPy and its BLAS choose kernels by the processor, and kernels round differently. The fingerprint names versions and
kernel, and proves the bits themselves by a digest of fixed products, sums and functions. Where machines differ, both
libraries can be held to kernels that all of them have: docs/cluster.md, "Machines of different kinds".
"""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import OpenBLASController, threadpool_info, threadpool_limits

Array = NDArray[Any]
# OpenBLAS's kernels, by name, that multiply small matrices without packing them; and up to how many multiplications
# (kernel/x86_64/sgemm_small_kernel_permit_skylakex.c; dgemm's has the same limit).
_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")
_SMALL_PRODUCT = 10**6
# The functions of core/ whose rounding IEEE 754 leaves open. NumPy has AVX-512 loops for some of them, of some dtypes,
# AVX2 loops for others, and takes the rest from the C library.
FUNCTIONS = ("cos", "exp", "expm1", "log", "log1p", "power", "sin", "tanh")
# Of our own operations: another number with any change of cuts (core/products.py), blocks (core/parameters.py) or the
# order of terms, so that builds of ours that round otherwise do not pass for the same.
_ORDER = b"2"


def small_product(threads: int) -> int:
    """What core.network.Network is told of this process's BLAS, which computes with `threads` threads.

    With several, larger products are worth more: those small kernels use one.
    """
    return _SMALL_PRODUCT if threads == 1 and _numpys_blas().get("architecture") in _SMALL_KERNELS else 0


def limit_threads(threads: int) -> threadpool_limits:
    """Hold the BLAS of this process to so many threads; as a context, until its end.

    The bits depend on it, and threadpoolctl obeys one thread alone, the first that ever asked, for as long as it lives:
    here one job comes after the other, each with threads of its own, and a forked process has its parent's.
    """
    OpenBLASController.clear_controlling_thread(force=True)
    return threadpool_limits(threads, user_api="blas")


@cache
def fingerprint() -> str:
    """`numpy-<version>/<blas>-<version>-<kernel>/<16 hex digits>`, of this process."""
    blas = _numpys_blas()
    kernel = f"{blas.get('internal_api')}-{blas.get('version')}-{blas.get('architecture')}"
    # With one thread, whatever the process's job has: the threads are part of the plan, not of the build.
    with limit_threads(1):
        return f"numpy-{np.__version__}/{kernel}/{_digest()}"


def _numpys_blas() -> dict[str, Any]:
    """The library that NumPy's wheel brings; SciPy's brings another, which a process may have loaded as well."""
    loaded = [info for info in threadpool_info() if info["user_api"] == "blas"]
    ours = [info for info in loaded if Path(info["filepath"]).parent.name == "numpy.libs"]
    return next(iter(ours or loaded), {})


def _digest() -> str:
    """Of values that exercise the kernels a step uses, from a formula and not from a random generator."""
    digest = hashlib.sha256(_ORDER)
    for dtype in (np.float32, np.float64):
        a, b = _numbers(7919, dtype).reshape(96, 192), _numbers(4799, dtype).reshape(192, 96)
        products = a @ b, a.T @ b.T, b[:, :10].T @ a.T, np.dot(a.ravel(), b.ravel())
        # By exp and log of the C library.
        normal = np.random.Generator(np.random.SFC64(7)).standard_normal(a.size, dtype)
        for values in (*products, normal, a.sum(axis=0), a.sum(axis=1), *(_function(name, a) for name in FUNCTIONS)):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def _numbers(factor: int, dtype: type) -> Array:
    """96 x 192 numbers from -4 to 4, by operations that round alike everywhere."""
    return (np.arange(96 * 192) * factor % 20011 / 2500 - 4).astype(dtype)


def _function(name: str, x: Array) -> Array:
    """The function of x, or of x made positive where it has to be."""
    positive = np.absolute(x) + x.dtype.type(0.001)
    found: Array = np.power(positive, 1.7) if name == "power" else getattr(np, name)(positive if "log" in name else x)
    return found


def machine() -> str:
    """Which running machine, and which part of it, this process sees: those who see the same can share memory.

    Containers of one machine have the kernel's boot id in common, but not the namespace of process ids. Where somebody
    has made several nodes of a cluster of one machine, each stands for a machine: Ray tells its processes which raylet
    is theirs.
    """
    boot, node = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.environ.get("RAY_RAYLET_PID", "")
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}/{node}"
