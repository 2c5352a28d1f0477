"""What LangGraph Studio opens first: the RLM itself, with models that need no key.

Give `question` and `context`: a text, or the name of a sample of `samples.py`. Studio's chat, and agents that talk to
it by A2A, give `messages`. For real answers put model names such as `"openai:gpt-5-mini"` in place of the two offline
ones.
"""

from graphs.form import Chat, with_form
from graphs.samples import SAMPLES
from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot

rlm = with_form(create_rlm(OfflineRoot(), OfflineReader(), contexts=SAMPLES), Chat)
