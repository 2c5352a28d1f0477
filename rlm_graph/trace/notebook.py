"""How a notebook shows a result: `%load_ext rlm_graph`, and what `rlm.invoke(…)` gives is a table, not a dict."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from rlm_graph.live import visible

_OURS = {"answer", "usage", "stop_reason"}
_SHOWN = 20
"""Citations and warnings that are shown; the others are counted."""


def register(ipython: Any) -> None:
    """Makes an IPython shell show results as HTML; other dicts it shows as before."""
    ipython.display_formatter.formatters["text/html"].for_type(dict, result_html)


def result_html(result: Mapping[str, Any]) -> str | None:
    """A result as HTML; None for a dict that is none."""
    if not result.keys() >= _OURS:
        return None
    parts = [f'<pre style="white-space:pre-wrap">{_escaped(str(result["answer"] or "(no answer)"))}</pre>']
    parts.append(f"<p>{_escaped(' · '.join(_facts(result)))}</p>")
    parts += _list("Warnings", [_escaped(warning) for warning in result.get("warnings") or ()])
    parts += _list("Citations", [_citation(citation) for citation in result.get("citations") or ()])
    return f"<div>{''.join(parts)}</div>"


def _facts(result: Mapping[str, Any]) -> list[str]:
    usage, coverage = result["usage"] or {}, result.get("coverage") or {}
    facts = [f"stop reason: {result['stop_reason']}"]
    facts += [f"{usage[name]:,} {name}" for name in ("turns", "calls") if name in usage]
    if "input_tokens" in usage:
        facts.append(f"{usage['input_tokens'] + usage['output_tokens']:,} tokens")
    facts.append(f"${usage['cost']:.4f}" if usage.get("cost") is not None else "cost not known")
    if "seconds" in usage:
        facts.append(f"{usage['seconds']:.1f} s")
    shares = [(coverage.get("scanned"), "scanned by code"), (coverage.get("read"), "read by a model")]
    return facts + [f"{share:.1%} {what}" for share, what in shares if share is not None]


def _citation(citation: Mapping[str, Any]) -> str:
    place = f"{citation['source']}, characters {citation['start']:,} to {citation['end']:,}"
    return f"<q>{_escaped(citation['quote'])}</q> — {_escaped(place)}"


def _list(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f"<li>and {len(items) - _SHOWN:,} more</li>" if len(items) > _SHOWN else ""
    return [f"<b>{title}</b><ol>{''.join(f'<li>{item}</li>' for item in items[:_SHOWN])}{more}</ol>"]


def _escaped(text: str) -> str:
    """Text for HTML, in which what would hide or turn the direction of other text is shown by its number."""
    return html.escape(visible(text))
