"""Resuming after a crash: a process is killed in the middle of its calls, and another one goes on with the run.

Nothing that was paid for is paid again: what had its reply is answered from the record.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    from langgraph.checkpoint.sqlite import SqliteSaver
except ImportError as error:
    raise SystemExit("this example needs a file for its threads: pip install langgraph-checkpoint-sqlite") from error

from rlm_graph import Limits, create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot


class Counted(OfflineReader):
    """A reader that counts its calls, and in the first process ends it with SIGKILL at the tenth."""

    die_at: int = 0
    calls: int = 0

    def _generate(self, *args: Any, **more: Any) -> Any:
        self.calls += 1
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._generate(*args, **more)


def run(folder: str, die_at: int = 0) -> None:
    reader = Counted(die_at=die_at)
    with SqliteSaver.from_conn_string(f"{folder}/threads.sqlite") as saver:
        rlm = create_rlm(OfflineRoot(), reader, checkpointer=saver, limits=Limits(max_concurrency=2))
        thread: Any = {"configurable": {"thread_id": "1"}}
        begun = bool(rlm.get_state(thread).values)
        report = "".join(f"Report {n}: the pier has {n} posts.\n" + "The sea was calm.\n" * 250 for n in range(1, 31))
        # `None` goes on with what is there; the context is on record as well.
        out = rlm.invoke(None if begun else {"question": "How many posts has the pier?", "context": report}, thread)
        print(f"the second process made {reader.calls} of the {out['usage']['calls']} calls: {out['stop_reason']}")


if len(sys.argv) > 1:
    run(sys.argv[1], die_at=10)
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLM_GRAPH_HOME"] = str(Path(folder) / "store")
        first = subprocess.run([sys.executable, __file__, folder], check=False)
        print(f"the first process ended by signal {-first.returncode}")
        run(folder)
