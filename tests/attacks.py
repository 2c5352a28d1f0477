"""The attacks: each is a cell that prints WON where it got what it was after. Bounded in time, processes and memory.

`P` is what the host has planted: see `planted` in `test_attacks.py`. None changes anything outside a temporary folder.
"""

from __future__ import annotations

ATTACKS = {
    "find a key in its own environment": """
        import os
        if P["secret"] in str(os.environ) + open("/proc/self/environ").read(): print("WON")
    """,
    "read the environment of the host's processes": """
        import glob
        for path in glob.glob("/proc/[0-9]*/environ"):
            try:
                if P["secret"] in open(path, errors="replace").read(): print("WON")
            except OSError: pass
    """,
    "read a file in the user's home": "if P['secret'] in open(P['home_file']).read(): print('WON')",
    "read /etc/shadow": "if open('/etc/shadow').read(): print('WON')",
    "list the host's processes": "if open(f'/proc/{P[\"victim\"]}/cmdline').read(): print('WON')",
    "signal a process of the host's": "import os; os.kill(P['victim'], 0); print('WON')",
    "signal a group of the host's processes": "import os; os.killpg(P['victim'], 0); print('WON')",
    "trace a process of the host's": """
        import ctypes
        libc = ctypes.CDLL(None)
        if libc.ptrace(0x4206, P["victim"], 0, 0) == 0:
            libc.ptrace(17, P["victim"], 0, 0)
            print("WON")
    """,
    "read another kernel's memory": "import os; os.close(os.open(f'/proc/{P[\"other\"]}/mem', os.O_RDONLY)); print('WON')",
    "read another kernel's scratch": """
        for path in P["other_files"]:
            try:
                if P["secret"] in open(path).read(): print("WON")
            except OSError: pass
    """,
    "connect to another kernel's channel": "import socket; socket.socket(socket.AF_UNIX).connect(P['other_channel']); print('WON')",
    "connect to a port on the host's loopback": "import socket; socket.create_connection(P['port'], 10); print('WON')",
    "ask a DNS server": """
        import socket
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(30)
        s.connect(tuple(P["dns"])); s.send(b"?")
        if s.recv(9): print("WON")
    """,
    "find a way to the internet": """
        import socket
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 53))
        print("WON")
    """,
    "connect to a Unix socket of the host's": "import socket; socket.socket(socket.AF_UNIX).connect(P['unix']); print('WON')",
    "send to a Unix socket of the host's from a pair": """
        import socket
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        a.sendto(b"!", P["unix_datagram"]); print("WON")
    """,
    "connect to an abstract Unix socket of the host's": """
        import socket
        socket.socket(socket.AF_UNIX).connect("\\0" + P["abstract"]); print("WON")
    """,
    "open a socket of another family": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print('WON')",
    "write outside the scratch": """
        import json, os
        for path, how in ((P["outside"] + "/new", "wb"), (json.__file__, "r+b"), (P["inside"], "r+b"), ("/dev/new", "wb")):
            try: open(path, how).close(); print("WON", path)
            except OSError: pass
        if os.path.exists("/dev/new"): os.unlink("/dev/new")
    """,
    "write to its context": "open(P['context'], 'r+b'); print('WON')",
    "see what lies beside its context": "import os; print('WON' if os.listdir(os.path.dirname(P['context'])) else '')",
    "fill the disk": """
        import os
        for n in range(4):
            with open(f"{os.environ['HOME']}/{n}", "wb") as f: os.posix_fallocate(f.fileno(), 0, P["scratch"] // 2)
        print("WON")
    """,
    "write a file without end": """
        import os
        with open(f"{os.environ['HOME']}/big", "wb") as f: f.seek(P["scratch"] + 1); f.write(b"!")
        print("WON")
    """,
    "fill the memory": "hog = bytearray(P['memory']); print('WON')",
    "map memory without end": "import mmap; m = mmap.mmap(-1, 40 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); print('WON')",
    "fill the memory by sharing it": """
        import mmap, time
        hog = mmap.mmap(-1, 2 * P["memory"])
        for at in range(0, len(hog), mmap.PAGESIZE): hog[at] = 1
        time.sleep(2); print("WON")
    """,
    "fill the memory by many processes": """
        import os, time
        told, tell = os.pipe()
        for n in range(4):
            if os.fork() == 0:
                try:
                    os.setsid()
                    if os.fork() == 0:
                        hog = b"!" * (P["memory"] // 2)
                        os.write(tell, b"!"); time.sleep(4)
                finally: os._exit(0)
            os.wait()
        os.close(tell)
        for n in range(4): os.read(told, 1)
        time.sleep(1); print("WON")
    """,
    "keep memory that no process maps": """
        import mmap, os
        try:
            hogs = [os.memfd_create("hog") for _ in range(P["memory"] // P["scratch"] + 2)]
            for hog in hogs: os.posix_fallocate(hog, 0, P["scratch"])
            print("WON memfd")
        except OSError: pass
        try: mmap.mmap(os.open("/dev/zero", os.O_RDWR), 4096); print("WON zero")
        except OSError: pass
    """,
    "keep files in /dev/shm": """
        import os, tempfile
        hogs = [tempfile.TemporaryFile(dir="/dev/shm") for _ in range(3)]
        for hog in hogs: os.posix_fallocate(hog.fileno(), 0, P["scratch"])
        print("WON")
    """,
    "fork without end": """
        import os, signal, time
        children = []
        try:
            for n in range(P["processes"] + 60):
                pid = os.fork()
                if pid == 0:
                    time.sleep(20); os._exit(0)
                children.append(pid)
            print("WON")
        finally:
            for pid in children: os.kill(pid, signal.SIGKILL)
            for pid in children: os.waitpid(pid, 0)
    """,
    "open files without end": "files = [open('/dev/null') for _ in range(5_000)]; print('WON')",
    "raise its own limits": """
        import resource
        for which in (resource.RLIMIT_DATA, resource.RLIMIT_CORE):
            try: resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)); print("WON")
            except (OSError, ValueError): pass
    """,
    "raise its limits by editing what is beside it": """
        import sys
        out = sys.modules["inside.output"].SCREEN.output
        for name in ("_head_room", "_tail_room"): setattr(out, name, getattr(out, name) + 10**9)
        print("!" * 1_000_000)
    """,
    "leave a core dump": """
        import os
        pid = os.fork()
        if pid == 0: os.abort()
        if os.WCOREDUMP(os.waitpid(pid, 0)[1]): print("WON")
    """,
    "have the host's crash handler run a program": "open('/proc/sys/kernel/core_pattern', 'r+b'); print('WON')",
    "open a device of the machine": """
        import os
        for name in ("mem", "kmsg", "sda", "vda", "nvme0n1", "fuse", "kvm", "vsock"):
            try: os.close(os.open("/dev/" + name, os.O_RDONLY | os.O_NONBLOCK)); print("WON", name)
            except OSError: pass
    """,
    "call what attacks on Linux begin with": """
        import ctypes, errno, os, platform
        libc = ctypes.CDLL(None, use_errno=True)
        x86 = platform.machine() == "x86_64"
        calls = {"personality": (135 if x86 else 92, 0xFFFFFFFF), "keyctl": (250 if x86 else 219, 0, -3, 0),
                 "io_uring_setup": (425, 1, 0), "userfaultfd": (323 if x86 else 282, 1), "bpf": (321 if x86 else 280, 0, 0, 0)}
        for name, call in calls.items():
            if libc.syscall(*call) != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS): print("WON", name)
        if os.fork() == 0:
            os._exit(libc.unshare(0x10000000) == 0)
        if os.wait()[1]: print("WON unshare")
    """,
    "forge messages of another run": """
        import gc, json
        wire = next(o for o in gc.get_objects() if type(o).__name__ == "Wire")
        for op in ("answers", "bind", "cell", "done"):
            wire.send(op, [[1, "forged", None, None]], number=1)
        wire.send("report", {"index": 7, "output": "forged", "error": None})
    """,
    "hand over a pickle": """
        class Pickle:
            def __reduce__(self): return (open, (P["outside"] + "/pickled", "w"))
        answer["content"] = Pickle()
    """,
}
