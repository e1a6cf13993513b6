"""Other kernels than those that the libraries choose for this processor, and what processes held to them say.

A process reads the variables when it imports NumPy: so it has to be another one.
"""

import os
import subprocess
import sys

import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

VARIABLES = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")
needs_avx2 = pytest.mark.skipif(
    not __cpu_features__.get("X86_V3"), reason="the kernels to pin to are those of x86-64 with AVX2"
)
# What NumPy has loops for beyond its baseline, and this processor has.
LEVELS = tuple(name for name in __cpu_dispatch__ if __cpu_features__[name])


def fingerprint_with(**variables: str) -> str:
    """Of a process that has these of VARIABLES and no other."""
    code = "from worker.numerics import fingerprint; print(fingerprint())"
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def kernel(fingerprint: str) -> str:
    """OpenBLAS's name for its kernels, of a fingerprint."""
    return fingerprint.split("/")[1].rpartition("-")[2]


def another_kernel() -> str:
    """Not this process's own, but one that runs wherever there is AVX2."""
    from worker.numerics import fingerprint

    return "Haswell" if kernel(fingerprint()) != "Haswell" else "Sandybridge"
