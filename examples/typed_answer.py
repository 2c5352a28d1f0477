"""A typed answer: it arrives as an object of your class, checked; one of another form goes back to the root.

The root is a fixed cell in place of a language model. A real one: `create_rlm("openai:gpt-5.1", …)`.
"""

from pathlib import Path

from langchain_core.language_models.fake_chat_models import FakeListChatModel
from pydantic import BaseModel

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader

LOGBOOK = Path(__file__).parent.parent / "graphs" / "samples" / "logbook.txt"

CELL = """\
```repl compose
import re
entry = next(line for line in context.splitlines() if "struck the outer reef" in line)
answer["content"] = {
    "date": entry.partition(".")[0],
    "ship": re.search(r"barque (\\w+)", entry)[1],
    "barometer": float(re.search(r"Barometer ([\\d.]+)\\.", entry)[1]),
}
answer["ready"] = True
```"""


class Wreck(BaseModel):
    date: str
    ship: str
    barometer: float
    """Inches of mercury."""


rlm = create_rlm(FakeListChatModel(responses=[CELL]), OfflineReader(), response_format=Wreck)
out = rlm.invoke({"question": "Which ship struck the outer reef, when, and at what pressure?", "context": LOGBOOK})

wreck = out["structured_response"]
print(f"{wreck!r}")
print(f"{wreck.ship} was lost on {wreck.date}, at {wreck.barometer:.1f} inches.")
