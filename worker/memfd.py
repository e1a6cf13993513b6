"""Memory that processes of one machine share: no name, no room in /dev/shm, gone with the last that maps it."""

import mmap
import os

from worker.machine_memory import available_bytes


def create(size: int, what: str) -> int:
    """The descriptor of so many bytes, all zero. MemoryError when the machine has no room for `what`."""
    # Asked before: a memfd that outgrows the memory is no error, it is the end of other processes.
    if size > (free := available_bytes()):
        raise MemoryError(f"{what} takes {size:,} bytes of memory; {free:,} are available")
    descriptor = os.memfd_create("fallline-memory", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, size)  # now, not page by page in the midst of a step
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def path(descriptor: int, pid: int | None = None) -> str:
    """Where other processes of this machine open it, as long as the process `pid`, this one, lives."""
    return f"/proc/{os.getpid() if pid is None else pid}/fd/{descriptor}"


def map_path(where: str, size: int) -> memoryview:
    """The memory at `where` (see `path`), of another process of the same user. OSError; ValueError: another size."""
    descriptor = os.open(where, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != size:
            raise ValueError(f"{where} does not have {size:,} bytes")
        return memoryview(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)  # the mapping stays
