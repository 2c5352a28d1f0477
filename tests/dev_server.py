"""A real `langgraph dev` server on loopback: started, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from alone import alone, without_keys
from ports import own_port


class DevServer:
    """`langgraph dev` in `folder`, which has a `langgraph.json`. What it keeps, it keeps below that folder.

    Args:
        folder: Where its configuration is.
        home: The content store of the graphs that it serves.
        network: Whether it could reach one, if it tried.
    """

    def __init__(self, folder: Path, home: Path, *, network: bool = True) -> None:
        self.folder = folder
        given = without_keys(os.environ) if network else alone(os.environ)
        self.environment = {**given, "LANGGRAPH_CLI_NO_ANALYTICS": "1", "RLM_GRAPH_HOME": str(home)}
        self.port = own_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        dev = ["dev", "--no-browser", "--no-reload", "--port", str(self.port), "--n-jobs-per-worker", "60"]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "langgraph_cli", *dev],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + 200
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/ok", timeout=30).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-5_000:]
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is saved."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
