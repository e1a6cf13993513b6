"""Runs one command so that nothing of it outlives its owner: no child, no grandchild, no daemon in its own session.

    python launcher.py GRACE FOLDER COMMAND ARGUMENT...

Standard input is a pipe whose other end the owner (the supervisor) holds and never writes to. Its end of file means
that the owner is gone or wants the command gone; it needs no cooperation, so it comes after `kill -9` of the owner
too. The launcher is a *child subreaper*: a descendant whose parent dies becomes the launcher's child, whatever process
group or session it has moved to, and so can always be found. Process groups and parent-death signals were tried, and
leave Ray's workers and agents behind.

- End of file: SIGTERM to the command, SIGKILL to all descendants once it has ended or GRACE seconds have passed.
- SIGTERM to the launcher: SIGKILL to all descendants at once.
- The command ends by itself: the same for what it leaves behind; the launcher ends with its exit code (128 + signal).
- FOLDER (`-`: none) is removed when nothing of the command is left: it held the command's sockets and scratch files.

Standard library alone, run by path with `-I -S`: it starts in some 10 ms.
"""

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36
COMMAND_NOT_STARTED = 127


def become_subreaper() -> None:
    """Orphaned descendants become children of this process from now on (Linux, `man 2 prctl`)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def parent_of(pid: int) -> int | None:
    """The parent's pid, or None when `pid` does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name (second field) is in parentheses and may hold anything, parentheses and blanks included.
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def descendants(root: int) -> dict[int, int]:
    """All living (or not yet reaped) descendants of `root`: pid -> its parent's pid; parents come first."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (parent := parent_of(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, int] = {}
    generation = [root]
    while generation:
        parents, generation = generation, []
        for parent in parents:
            found |= dict.fromkeys(children.get(parent, []), parent)
            generation += children.get(parent, [])
    return found


def child_of(pid: int) -> int | None:
    """The first child of `pid`: a launcher's command."""
    return next(iter(descendants(pid)), None)


def kill(pid: int, parent: int) -> None:
    """SIGKILL, unless `pid` has ended and the number has gone to a process with another parent."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if parent_of(pid) == parent:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended meanwhile
    finally:
        os.close(descriptor)


def kill_descendants() -> None:
    """SIGKILL to every descendant, again and again until none is left: one may fork while it is being killed."""
    pause = 0.002
    while family := descendants(os.getpid()):
        for pid, parent in family.items():
            kill(pid, parent)
        reap()
        time.sleep(pause)
        pause = min(2 * pause, 0.1)  # one may hang in the kernel for a while


def kill_orphans(own: set[int]) -> None:
    """SIGKILL to all children of this process but `own`, and to all that is below them, until none is left."""
    me = os.getpid()
    while orphans := [pid for pid, parent in descendants(me).items() if parent == me and pid not in own]:
        for orphan in orphans:
            for pid, parent in descendants(orphan).items():
                kill(pid, parent)
            kill(orphan, me)
            os.waitpid(orphan, 0)


def reap() -> dict[int, int]:
    """Collects every ended child: pid -> exit code, 128 + signal for a killed one."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = code if code >= 0 else 128 - code


def remove(folder: str) -> None:
    """Removes the folder with all in it; a file that somebody else holds back is no reason to fail."""
    import shutil  # here: most commands have no folder, and it takes a third of this file's start

    shutil.rmtree(folder, ignore_errors=True)


def wakeup_pipe() -> int:
    """A descriptor that becomes readable with every signal, so that one `poll` waits for signals and pipes alike."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read


class Launcher:
    """The loop: waits for the owner's end of file, for signals and for the command's end, whichever comes first."""

    def __init__(self, grace: float, folder: str, command: list[str]) -> None:
        self.grace, self.folder, self.command = grace, folder, command
        self.kill_now = False
        self.deadline: float | None = None  # when a command asked to end is killed

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.kill_now = self.kill_now or number == signal.SIGTERM

    def run(self) -> int:
        """Returns the exit code to end with; no descendant is left then."""
        become_subreaper()
        # Handlers, not SIG_IGN: the command would inherit ignored signals. A terminal's Ctrl-C is the owner's affair.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signals = wakeup_pipe()
        try:
            child = os.posix_spawn(
                self.command[0],
                self.command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)],
            )
        except OSError as error:
            sys.stderr.write(f"{self.command[0]} cannot be started: {error.strerror}\n")
            return COMMAND_NOT_STARTED
        code = self._watch(child, signals)
        kill_descendants()
        if self.folder != "-":
            remove(self.folder)
        return code

    def _watch(self, child: int, signals: int) -> int:
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        poll.register(0, select.POLLIN | select.POLLHUP)
        while not self.kill_now:
            if (code := reap().get(child)) is not None:
                return code
            left = None if self.deadline is None else self.deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            for descriptor, _ in poll.poll(None if left is None else left * 1000):
                if self.kill_now:
                    break
                if not os.read(descriptor, 4096) and self.deadline is None:  # only standard input ever ends
                    poll.unregister(descriptor)
                    self.deadline = time.monotonic() + self.grace
                    os.kill(child, signal.SIGTERM)
        return 128 + signal.SIGKILL


if __name__ == "__main__":
    sys.exit(Launcher(float(sys.argv[1]), sys.argv[2], sys.argv[3:]).run())
