"""A question over a DataFrame: its rows are the context, as records."""

try:
    import pandas as pd
except ImportError as error:
    raise SystemExit("this example needs pandas: pip install pandas") from error

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot

orders = pd.DataFrame(
    {
        "order": range(1, 2_001),
        "customer": [f"customer {n % 97}" for n in range(2_000)],
        "note": ["delivered" if n != 1_233 else "returned: the lamp was broken" for n in range(2_000)],
        "ordered": pd.date_range("2026-01-01", periods=2_000, freq="h"),
    }
)
# Dates are no JSON, so they become text. A real root can filter and sum these records in Python before it asks a model.
records = orders.assign(ordered=orders["ordered"].dt.strftime("%Y-%m-%d %H:%M")).to_dict("records")
print(f"{len(records):,} records with {', '.join(records[0])}")

rlm = create_rlm(OfflineRoot(), OfflineReader())
out = rlm.invoke({"question": "Which lamp was returned broken?", "context": records})
print(out["answer"])
