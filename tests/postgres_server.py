"""A PostgreSQL server of the tests' own: a folder, a Unix socket, no network. Not a test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg


def serve(bin: Path, folder: Path) -> Iterator[str]:
    """Yields the connection string of a server that lives until the generator is closed."""
    sockets = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a Unix socket's path must be short
    data = sockets / "data"
    user = _user(sockets)
    try:
        subprocess.run([bin / "initdb", "-D", data, "-U", "rlm", "-A", "trust", "-N"], check=True, stdout=-3, **user)
        options = ["-k", sockets, "-c", "listen_addresses=", "-c", "fsync=off"]
        server = subprocess.Popen([bin / "postgres", "-D", data, *options], stderr=-3, **user)
        try:
            address = f"postgresql://rlm@/postgres?host={sockets}"
            _set_up(address)
            yield address
        finally:
            server.send_signal(signal.SIGINT)  # it waits for no client: that of a killed host may still be there
            server.wait(60)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _user(sockets: Path) -> dict[str, int]:
    """PostgreSQL will not run as root: there it runs as `postgres`, whose the folder becomes."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    os.chown(sockets, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid}


def _set_up(address: str) -> None:
    from langgraph.checkpoint.postgres import PostgresSaver

    deadline = time.monotonic() + 60
    while True:
        try:
            with PostgresSaver.from_conn_string(address) as saver:
                saver.setup()
                return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
