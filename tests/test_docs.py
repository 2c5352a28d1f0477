"""Every public name says what it means, and shows it by an example that runs."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import rlm_graph
from rlm_graph.offline import OfflineReader, OfflineRoot
from rlm_graph.trace.report import write_report

PUBLIC = {name: getattr(rlm_graph, name) for name in rlm_graph.__all__} | {
    value.__name__: value for value in (OfflineReader, OfflineRoot, write_report)
}
RAISE_NOTHING = {"Approval", "OfflineReader"}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_runs(name: str) -> None:
    value = PUBLIC[name]
    [test, *_] = doctest.DocTestFinder(recurse=False).find(value, name, globs={name: value})
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not result.failed, "".join(said)


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - RAISE_NOTHING))
def test_a_public_name_tells_of_its_errors(name: str) -> None:
    assert "Raises:" in (PUBLIC[name].__doc__ or "")


def test_the_package_is_imported_without_langchain_and_without_what_is_not_used() -> None:
    program = (
        "import sys, rlm_graph; print([m for m in sys.modules if m in ('langchain', 'langchain_openai', 'openai')])"
    )
    program += "; print([m for m in sys.modules if m.startswith('rlm_graph.integrations')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


def test_an_unknown_name_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rlm_graph.nothing  # noqa: B018
