"""Waiting for a word in shared memory: spin briefly, then block in the kernel (Linux, `man 2 futex`).

A barrier of two processes takes 2.5 microseconds while both spin and 11 when both block; through sockets it took 20.
Python has no atomic addition on a mapping, so each word has one writer, and whoever waits compares.

Plain stores of an aligned 4-byte word are atomic, and on x86-64 become visible after all stores before them: what a
process wrote before it set its word is there for whoever has seen the word. Other processors need fences that Python
cannot issue; `SUPPORTED` says whether this machine will do.
"""

import ctypes
import platform
import sys
import time
from collections.abc import Callable
from typing import Final

SUPPORTED: Final = sys.platform == "linux" and platform.machine() == "x86_64"
SPIN_S: Final = 100e-6
TICK_S: Final = 0.05  # how long a blocked process waits at most before it looks whether it should go on waiting
WORD_BYTES: Final = 64  # one word a cache line: neighbours' writers do not slow each other
_STRIDE: Final = WORD_BYTES // 4
_SYS_FUTEX, _WAIT, _WAKE, _EVERYBODY = 202, 0, 1, 2**31 - 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_TICK = ctypes.byref(_Timespec(0, int(TICK_S * 1e9)))
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class Words:
    """`count` words of int32 at the start of `buffer` (writable, shared), a cache line each. Each has one writer."""

    def __init__(self, buffer: memoryview, count: int) -> None:
        self._view = buffer[: count * WORD_BYTES].cast("i")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self.count = count

    def __getitem__(self, index: int) -> int:
        return self._view[index * _STRIDE]

    def __setitem__(self, index: int, value: int) -> None:
        """Store, without waking anybody."""
        self._view[index * _STRIDE] = value

    def publish(self, index: int, value: int) -> None:
        """Store and wake whoever waits for the word."""
        self._view[index * _STRIDE] = value
        self.wake(index)

    def wake(self, index: int) -> None:
        """Wake whoever waits for the word, its value unchanged: they look again whether to go on."""
        _syscall(_SYS_FUTEX, ctypes.c_void_p(self._address + index * WORD_BYTES), _WAKE, _EVERYBODY, None, None, 0)

    def wait(self, index: int, least: int, spin: bool, look: Callable[[], None]) -> None:
        """Return once the word is at `least` or beyond. `look` is called before each block and may raise to give up."""
        view, at = self._view, index * _STRIDE
        if spin:
            end = time.perf_counter() + SPIN_S
            while view[at] < least and time.perf_counter() < end:
                pass
        while (seen := view[at]) < least:
            look()
            _syscall(_SYS_FUTEX, ctypes.c_void_p(self._address + at * 4), _WAIT, seen, _TICK, None, 0)
