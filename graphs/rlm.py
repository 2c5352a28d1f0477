"""What LangGraph Studio opens first: the RLM itself, with models that need no key.

Give `question` and `context`: a text, or the name of a sample of `samples.py`. For real answers put model names such as
`"openai:gpt-5-mini"` in place of the two offline ones.
"""

from graphs.samples import SAMPLES
from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot

rlm = create_rlm(OfflineRoot(), OfflineReader(), contexts=SAMPLES)
