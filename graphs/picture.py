"""Draws the graph into README.md, between the two markers: `make picture`."""

from __future__ import annotations

from pathlib import Path

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- drawn by `make picture` -->\n", "<!-- end of the picture -->\n"


def picture() -> str:
    """The graph in Mermaid, `sub_call` opened up. Not deeper: the RLM inside it is the same graph again."""
    graph = create_rlm(OfflineRoot(), OfflineReader()).get_graph(xray=1)
    return f"```mermaid\n{graph.draw_mermaid()}```\n"


def with_picture(text: str) -> str:
    """The text with the picture between its markers.

    Raises:
        ValueError: It does not have each marker once.
    """
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    if text.count(BEGIN) != 1 or text.count(END) != 1 or END in before:
        raise ValueError(f"README.md needs, once each and in this order: {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + picture() + END + after


if __name__ == "__main__":
    README.write_text(with_picture(README.read_text("utf-8")), "utf-8")
