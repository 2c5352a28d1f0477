"""What LangGraph Studio opens: an RLM that needs no key.

Give `question` and `context`: a text, a list of texts, a mapping of names to texts, or what `hold()` returned. For real
answers put model names such as `"openai:gpt-5-mini"` in place of the two offline ones.
"""

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot

rlm = create_rlm(OfflineRoot(), OfflineReader())
