"""Child processes that never outlive their parent.

Every child runs under a small *keeper* (this module run as a script) that starts the command in a process group of its
own and waits for two things: the command to end, or its own standard input to close. The parent holds the other end of
that pipe, so the keeper learns of the parent's end however it comes, by SIGKILL too, and ends the whole group: the
command and what it started. (Linux's parent-death signal alone would not do: it follows the thread that started the
child, not the process, and knows nothing of grandchildren.)
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from consilium.common.errors import MachineError

_POLL_S: Final = 0.02
_KEEPER_MARGIN_S: Final = 2.0
_SIGNALLED: Final = 128  # a command ended by signal n is reported as 128 + n, as a shell does


def free_port() -> int:
    """Return a TCP port that was free on loopback a moment ago; whoever uses it must be ready to find it taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def loopback_no_proxy(environment: Mapping[str, str]) -> str:
    """Return a ``NO_PROXY`` that keeps what ``environment`` has and sends nothing for this machine to a proxy."""
    present = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    names = [name.strip() for name in present.split(",") if name.strip()]
    return ",".join(dict.fromkeys([*names, "127.0.0.1", "localhost"]))


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment for a Flower process that keeps to itself.

    Parameters
    ----------
    home
        Becomes ``FLWR_HOME``: settings, bundles and logs go there and nowhere else.

    Returns
    -------
    dict
        This process's environment with telemetry, update checks and Ray's usage report off, Flower's poll for new
        tasks at 0.3 s instead of 1 s, and this interpreter's folder first on ``PATH`` (Flower starts its own commands
        by name).
    """
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": loopback_no_proxy(os.environ),
    }


class Child:
    """A running command, the file that receives its output, and the means to end it with all it started.

    Parameters
    ----------
    name
        For messages.
    command
        Program and arguments; no shell.
    log
        Output is appended here; the folder is made.
    environment
        The whole environment of the command; by default this process's.
    folder
        Working directory of the command.
    grace_s
        Seconds the group gets between SIGTERM and SIGKILL.

    Raises
    ------
    MachineError
        If the command can not be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        grace_s: float = 8.0,
    ) -> None:
        self.name: Final = name
        self.log: Final = log
        self._grace_s: Final = grace_s
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", "-m", "consilium.common.processes", str(grace_s), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=None if environment is None else dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        first_line = self._keeper.stdout.readline() if self._keeper.stdout else b""
        if not first_line:
            self._keeper.wait()
            self._close_pipes()
            raise MachineError(f"{name} could not be started: {command[0]}; its log {log} ends:\n{self.tail()}")
        self.pid: Final = int(first_line)

    @property
    def keeper_pid(self) -> int:
        """The keeper's process id; `pid` is the command's own."""
        return self._keeper.pid

    def exit_status(self) -> int | None:
        """Return None while the command runs, then its exit status (128 + n if signal n ended it)."""
        return self._keeper.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait up to ``timeout_s`` seconds for the command to end by itself; return what `exit_status` then says."""
        try:
            return self._keeper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Ask the whole group to end, and return at once; `stop` waits for it."""
        if self._keeper.stdin and not self._keeper.stdin.closed:
            self._keeper.stdin.close()

    def stop(self) -> int:
        """End the command and all it started: SIGTERM, the grace, SIGKILL. Return its exit status; safe to repeat."""
        self.terminate()
        try:
            status = self._keeper.wait(self._grace_s + _KEEPER_MARGIN_S)
        except subprocess.TimeoutExpired:
            _signal_group(self.pid, signal.SIGKILL)
            self._keeper.kill()
            status = self._keeper.wait()
        if status < 0:  # the keeper itself was killed and could not end its group
            _signal_group(self.pid, signal.SIGKILL)
        self._close_pipes()
        return status

    def tail(self, lines: int = 20) -> str:
        """Return the last ``lines`` lines of the log, for messages."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 400 * lines))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], bool], timeout_s: float, *, every_s: float = 0.1) -> None:
        """Wait until ``ready()`` is true.

        Raises
        ------
        MachineError
            If the command ends first or ``timeout_s`` seconds pass; the message has the end of the log.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            status = self.exit_status()
            if status is not None:
                raise MachineError(f"{self.name} ended at its start with status {status}; its log ends:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name} was not ready within {timeout_s:g} s; its log ends:\n{self.tail()}")
            time.sleep(every_s)

    def _close_pipes(self) -> None:
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                pipe.close()


class ProcessGroup:
    """Children that end together: in reverse order of their start, when the ``with`` block is left in whatever way."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def add(self, child: Child) -> Child:
        """Take charge of ``child`` and return it."""
        self._children.append(child)
        return child

    def discard(self, child: Child) -> None:
        """Let go of ``child``, which has been stopped."""
        self._children.remove(child)

    @property
    def children(self) -> tuple[Child, ...]:
        """The children in order of their start."""
        return tuple(self._children)

    def stop(self) -> None:
        """Stop all, last started first; a second interrupt while stopping does not leave any behind."""
        interrupted: BaseException | None = None
        while self._children:
            try:
                self._children[-1].stop()
            except KeyboardInterrupt as interrupt:
                interrupted = interrupt
                continue
            self._children.pop()
        if interrupted is not None:
            raise interrupted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of a group of zombies
        return False
    return True


def _become_subreaper() -> None:
    """Have orphaned descendants handed to this process (Linux), so that they are reaped and seen to be gone."""
    if sys.platform == "linux":
        import ctypes

        set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _reap(command: int) -> int | None:
    """Collect every ended descendant; return the exit status of process ``command`` if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == command:
                code = os.waitstatus_to_exitcode(ended[1])
                status = code if code >= 0 else _SIGNALLED - code
    return status


def _end_group(group: int, grace_s: float) -> int | None:
    """SIGTERM to the group, SIGKILL after the grace; return the command's exit status if it ended now."""
    status = None
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while True:
        status = _reap(group) if status is None else (_reap(group), status)[1]
        if not _group_is_alive(group):
            return status
        if time.monotonic() > deadline:
            _signal_group(group, signal.SIGKILL)
        time.sleep(_POLL_S)


def _keep(grace_s: float, command: Sequence[str]) -> int:
    """Run ``command`` until it ends or standard input closes; leave nothing of its group behind; return its status."""
    import select

    _become_subreaper()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)  # every signal's number arrives in the pipe as one byte
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), process_group=0)
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr)  # noqa: T201 - standard error is the log
        return 127
    os.write(1, b"%d\n" % process.pid)
    os.close(1)
    status: int | None = None
    while status is None:
        readable, _, _ = select.select([0, woken], [], [])
        signals = os.read(woken, 4096) if woken in readable else b""
        asked_to_end = 0 in readable or any(number != signal.SIGCHLD for number in signals)
        status = _reap(process.pid)
        if asked_to_end or status is not None:
            ended = _end_group(process.pid, grace_s)
            status = ended if status is None else status
            return _SIGNALLED if status is None else status
    return status


if __name__ == "__main__":
    sys.exit(_keep(float(sys.argv[1]), sys.argv[2:]))
