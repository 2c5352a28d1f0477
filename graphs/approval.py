"""The RLM with a human in the loop: it asks before it makes more calls than were approved.

The run is interrupted with what it is about to do. Answer "approve", "refuse", or a smaller number of calls.
"""

from graphs.form import Form, with_form
from graphs.samples import SAMPLES
from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot

approval = with_form(
    create_rlm(OfflineRoot(), OfflineReader(), contexts=SAMPLES, approve_above=5, name="approval"), Form
)
