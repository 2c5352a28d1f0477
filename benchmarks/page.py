"""How quick the page of a run with 10 000 calls is in a browser: `python benchmarks/page.py`.

It needs Chromium and its driver (Debian: apt install chromium chromium-driver). The aim: each interaction below
100 ms.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from rlm_graph.trace.report import page
from test_report import browser, many

CALLS = 10_000
TIMES = 7
MEASURED = {
    "search for one call and open it": "byId('words').value = 'item {n}'; seek(1)",
    "open a hundred calls": "byId('fold').click(); reveal('r0/c0/p{page}')",
    "open one call": "reveal('r0/c0/p{page}/k{n}')",
    "draw the time chart anew": "drawTime(bars())",
    "fold all": "byId('fold').click()",
}


def milliseconds(chrome: Any, action: str) -> float:
    """What an action takes until the browser has laid the page out again."""
    timed = f"const t = performance.now(); {action}; document.body.offsetHeight; return performance.now() - t"
    return float(chrome.execute_script(timed))


def main() -> None:
    began = time.perf_counter()
    html = page(many(CALLS), {})
    made = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder, browser() as chrome:
        file = Path(folder) / "run.html"
        file.write_text(html, "utf-8")
        began = time.perf_counter()
        chrome.get(file.as_uri())
        opened = time.perf_counter() - began
        print(f"{CALLS:,} calls: {len(html) / 1e6:.1f} MB, made in {made:.2f} s, open in {opened:.2f} s")
        for name, action in MEASURED.items():
            picks = [CALLS * (turn + 1) // (TIMES + 2) for turn in range(TIMES)]
            took = [milliseconds(chrome, action.format(n=n, page=n // 100)) for n in picks]
            print(f"{name:<34} median {statistics.median(took):6.1f} ms, most {max(took):6.1f} ms")


if __name__ == "__main__":
    main()
