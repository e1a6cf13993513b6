"""Which build computes here: the weights' hash holds for equal fingerprints.

NumPy and its BLAS choose kernels by the processor, and kernels round differently. The fingerprint names versions and
kernel, and proves the bits themselves by a digest of fixed products, exponentials and sums.
"""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

# OpenBLAS's kernels, by name, that multiply small matrices without packing them; and up to how many multiplications
# (kernel/x86_64/sgemm_small_kernel_permit_skylakex.c; dgemm's has the same limit).
_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")
_SMALL_PRODUCT = 10**6


def small_product(threads: int) -> int:
    """What core.network.Network is told of this process's BLAS, which computes with `threads` threads.

    With several, larger products are worth more: those small kernels use one.
    """
    return _SMALL_PRODUCT if threads == 1 and _numpys_blas().get("architecture") in _SMALL_KERNELS else 0


@cache
def fingerprint() -> str:
    """`numpy-<version>/<blas>-<version>-<kernel>/<16 hex digits>`, of this process."""
    blas = _numpys_blas()
    kernel = f"{blas.get('internal_api')}-{blas.get('version')}-{blas.get('architecture')}"
    # With one thread, whatever the process's job has: the threads are part of the plan, not of the build.
    with threadpool_limits(1, user_api="blas"):
        return f"numpy-{np.__version__}/{kernel}/{_digest()}"


def _numpys_blas() -> dict[str, Any]:
    """The library that NumPy's wheel brings; SciPy's brings another, which a process may have loaded as well."""
    loaded = [info for info in threadpool_info() if info["user_api"] == "blas"]
    ours = [info for info in loaded if Path(info["filepath"]).parent.name == "numpy.libs"]
    return next(iter(ours or loaded), {})


def _digest() -> str:
    """Of values that exercise the kernels a step uses, in float32, from a formula and not from a random generator."""
    ramp = np.arange(1, 96 * 192 + 1, dtype=np.float64)
    a = np.sin(ramp * 0.7).astype(np.float32).reshape(96, 192)
    b = np.cos(ramp * 1.3).astype(np.float32).reshape(192, 96)
    digest = hashlib.sha256()
    products, functions = (a @ b, a.T @ b.T, b[:, :10].T @ a.T), (np.exp(a), np.tanh(a), np.sqrt(a * a))
    for values in (*products, *functions, a.sum(axis=0), a.sum(axis=1)):
        digest.update(np.ascontiguousarray(values).tobytes())
    digest.update(np.float32(np.dot(a.ravel(), a.ravel())).tobytes())
    return digest.hexdigest()[:16]


def machine() -> str:
    """Which running machine, and which part of it, this process sees: those who see the same can share memory.

    Containers of one machine have the kernel's boot id in common, but not the namespace of process ids. Where somebody
    has made several nodes of a cluster of one machine, each stands for a machine: Ray tells its processes which raylet
    is theirs.
    """
    boot, node = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.environ.get("RAY_RAYLET_PID", "")
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}/{node}"
