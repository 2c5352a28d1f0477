"""How a kernel's process is started in its cage: jupyter_client's own extension point."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Instance, Integer, List, Unicode

from .cage import HOME, bubblewrap
from .carry import sealed
from .inside import seccomp
from .isolation import bubblewrap_program

INSIDE = Path(__file__).parent / "inside"
_PATH = "/usr/local/bin:/usr/bin:/bin"


class CageProvisioner(LocalProvisioner):
    """Starts a kernel in bubblewrap, or as a plain child where the kernel cages itself or is not to be caged."""

    means = Unicode(help="`bubblewrap`, or anything else.")
    folder = Instance(Path, help="Private to this kernel: its scratch is there, where there is no cage.")
    scratch = Integer(help="Bytes that it may keep in files, in bubblewrap.")
    descriptors = List(Integer(), help="What it inherits.")
    said = Integer(help="Where it writes what is no cell's output.")

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Starts it. Nothing is awaited, so that it can be called where no loop runs."""
        home = self.folder / "scratch"
        with ExitStack() as ours:
            passed = list(self.descriptors)
            program = bubblewrap_program() if self.means == "bubblewrap" else None
            if program is None and self.means == "bubblewrap":
                raise FileNotFoundError("bubblewrap is gone: nothing starts without the cage that was asked for")
            if program is not None:
                steps = seccomp.program(network=True)
                if steps is not None:
                    passed.append(sealed(steps))
                    ours.callback(os.close, passed[-1])
                filter = None if steps is None else passed[-1]
                root = os.geteuid() == 0
                cmd = bubblewrap(program, cmd, inside=INSIDE, scratch=self.scratch, seccomp=filter, root=root)
            return await super().launch_kernel(
                cmd,
                env=environment(HOME if program else str(home)),
                cwd=str(home),
                stdin=subprocess.DEVNULL,
                stdout=self.said,
                stderr=self.said,
                pass_fds=passed,
            )


def environment(home: str) -> dict[str, str]:
    """Gives the kernel's whole environment, and its launcher's: nothing of the host's, so no key of anybody's."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), _PATH]),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "USER": "rlm",
        "HOME": home,
        "TMPDIR": home,
        "IPYTHONDIR": f"{home}/.ipython",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def launch(provisioner: CageProvisioner, cmd: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a kernel without an event loop. Blocks.

    Raises:
        OSError: It cannot be started.
    """
    try:
        provisioner.launch_kernel(list(cmd)).send(None)
    except StopIteration:
        assert provisioner.process is not None
        return provisioner.process
    raise RuntimeError("starting a process is not to wait for anything")
