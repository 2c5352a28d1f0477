"""`RLMChatModel` stands where any chat model stood, and reads what is too long for one."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from langchain_tests.unit_tests.chat_models import ChatModelTests
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from conftest import chat
from model_server import Answer, ModelServer, Request, by_model, text_of
from rlm_graph import Limits, RLMChatModel
from rlm_graph.errors import ContextError
from rlm_graph.offline import OfflineRoot
from test_node import Tracer, all_runs

LONG = "The sea is blue. " * 6_000 + "The pier was built in 1907. " + "The sea is blue. " * 6_000
READ = (
    "```repl compose\nimport re\ntexts = context.values() if isinstance(context, dict) else [context]\n"
    "FINAL('It says: ' + ' '.join(w for t in texts for w in re.findall(r'\\b19\\d\\d\\b', t)))\n```"
)


def filled(schema: dict[str, Any], prompt: str) -> Any:
    """A value of this JSON schema, with the numbers and the quoted words of a prompt where they fit."""
    kind = schema.get("type")
    if kind == "object":
        return {name: filled(field, prompt) for name, field in schema.get("properties", {}).items()}
    if kind == "integer":
        return int(next(iter(re.findall(r"\d+", prompt)), 1))
    quoted = re.findall(r"'([^']+)'", prompt)
    return quoted[0] if quoted else "words"


def obliging(request: Request) -> str | Answer:
    """A model that calls its tools when it is asked something, and keeps to the form that it is given."""
    shown = "\n".join(text_of(message.get("content")) for message in request.messages)
    found = re.search(r"It says: .*", shown)
    prompt = found[0] if found else request.prompt
    form = (request.body.get("response_format") or {}).get("type")
    if form == "json_schema":
        return json.dumps(filled(request.body["response_format"]["json_schema"]["schema"], prompt))
    if form == "json_object":
        return json.dumps({"setup": "a cat", "punchline": "another cat"})
    tools = [t["function"] for t in request.body.get("tools") or ()]
    if tools and request.messages[-1]["role"] == "user":
        choice = request.body.get("tool_choice")
        wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["name"]
        [chosen] = [t for t in tools if t["name"] == wanted]
        return Answer(tools=((wanted, filled(chosen["parameters"], prompt)),))
    if request.messages[0]["role"] == "system" and "```repl" in text_of(request.messages[0]["content"]):
        return READ
    return f"You said: {text_of(request.messages[-1]['content'])[-300:]}"


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer(obliging) as server:
        yield server


class Standard:
    """The inner model is `ChatOpenAI`, behind it a scripted server over HTTP.

    Two tests are skipped: the model is not serializable, as its models and stores need not be; and no provider's HTTP
    traffic is recorded, as there is none.
    """

    url = ""

    @pytest.fixture(autouse=True)
    def _served(self, server: ModelServer) -> None:
        # LangChain keeps one HTTP client for each address, and each test has an event loop of its own.
        type(self).url = f"http://127.0.0.1:{server.port}/{uuid4().hex}/v1"

    @property
    def chat_model_class(self) -> type[RLMChatModel]:
        return RLMChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": ChatOpenAI(model="root", base_url=self.url, api_key="none", stream_usage=True)}

    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The suite fetches pictures, a PDF and a sound to attach; that they arrive is all that is looked at here.
        monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(200, content=b"some bytes"))

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def supports_audio_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another"


@pytest.mark.filterwarnings("ignore:no effect on RLMChatModel")
class TestStandardUnit(Standard, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"OPENAI_API_KEY": "none"}, {"model": "openai:gpt-5-mini"}, {"direct_below": 16_000}


@pytest.mark.filterwarnings("ignore:no effect on RLMChatModel")
class TestStandardIntegration(Standard, ChatModelIntegrationTests):
    pass


@pytest.mark.filterwarnings("ignore:no effect on RLMChatModel")
class TestStandardEssentialsAboveTheThreshold(Standard, ChatModelTests):
    """What of the suite every answer of the RLM's has to stand, whose short prompts would go to the inner model."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "direct_below": 0}

    test_invoke = ChatModelIntegrationTests.test_invoke
    test_ainvoke = ChatModelIntegrationTests.test_ainvoke
    test_stream = ChatModelIntegrationTests.test_stream
    test_astream = ChatModelIntegrationTests.test_astream
    test_batch = ChatModelIntegrationTests.test_batch
    test_abatch = ChatModelIntegrationTests.test_abatch
    test_conversation = ChatModelIntegrationTests.test_conversation
    test_stop_sequence = ChatModelIntegrationTests.test_stop_sequence

    @pytest.mark.parametrize("check", ["test_usage_metadata", "test_usage_metadata_streaming"])
    def test_usage_metadata_but_for_a_model_s_name(self, model: RLMChatModel, check: str) -> None:
        # With a name, callbacks would count again what they have counted of each model's own calls.
        with pytest.raises(AssertionError, match=r"isinstance\(None, str\)"):
            getattr(ChatModelIntegrationTests(), check)(model)


class Reader:
    """An `RLMChatModel` over a server of its own, and what it asked there."""

    def __init__(self, server: ModelServer, **more: Any) -> None:
        self.server = server
        self.model = RLMChatModel(model=chat(server, "root"), sub_model=chat(server, "sub"), **more)

    def prompts(self) -> list[str]:
        return ["\n".join(text_of(m.get("content")) for m in record.messages) for record in self.server.seen]


@pytest.fixture
def reader() -> Iterator[Reader]:
    with ModelServer(by_model({"root": obliging, "sub": obliging})) as server:
        yield Reader(server)


def asked(messages: Any) -> list[BaseMessage]:
    return [HumanMessage(LONG), *messages]


def test_a_short_call_reaches_the_inner_model_as_it_is(reader: Reader) -> None:
    usage = UsageMetadataCallbackHandler()
    message = reader.model.invoke("Hello", {"callbacks": [usage]}, temperature=0.25)
    assert message.text == "You said: Hello"
    [record] = reader.server.seen
    assert record.messages == [{"role": "user", "content": "Hello"}]
    assert (
        message.usage_metadata
        and usage.usage_metadata["root"]["total_tokens"] == message.usage_metadata["total_tokens"]
    )


def test_a_long_message_is_read_and_its_ends_are_the_question(reader: Reader) -> None:
    usage = UsageMetadataCallbackHandler()
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "When?\n\n{text}\n\nBuilt when?")])
    model = reader.model.with_config(callbacks=[usage])
    answer = (prompt | model | StrOutputParser()).invoke({"text": LONG})
    assert answer == "It says: 1907"
    [shown] = reader.prompts()
    assert "Question: When?\n…\nBuilt when?" in shown and "Be brief." in shown
    assert len(shown) < 10_000


@pytest.mark.parametrize(
    "attached",
    [
        {"type": "text", "text": LONG},
        {"type": "text-plain", "text": LONG, "mime_type": "text/plain"},
        {"type": "file", "base64": base64.b64encode(LONG.encode()).decode(), "mime_type": "text/csv"},
        {
            "type": "file",
            "file": {
                "filename": "a.txt",
                "file_data": f"data:text/plain;base64,{base64.b64encode(LONG.encode()).decode()}",
            },
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": LONG}},
    ],
    ids=["text", "text-plain", "base64", "openai", "anthropic"],
)
def test_what_is_attached_is_read_and_the_rest_is_the_question(reader: Reader, attached: dict[str, Any]) -> None:
    message = HumanMessage([{"type": "text", "text": "When was it built?"}, attached])
    assert reader.model.invoke([message]).text == "It says: 1907"
    assert "Question: When was it built?\n\nContext: `context` is a str" in reader.prompts()[0]


@pytest.mark.parametrize(
    "attached",
    [
        {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
        {"type": "file", "base64": base64.b64encode(b"%PDF-1.7 x").decode(), "mime_type": "application/pdf"},
        {"type": "file", "url": "http://127.0.0.1/report.txt"},
    ],
)
def test_what_is_no_text_is_refused_by_its_name(attached: dict[str, Any]) -> None:
    model = RLMChatModel(model=OfflineRoot())
    message = HumanMessage([{"type": "text", "text": "When?"}, {"type": "text", "text": LONG}, attached])
    with pytest.raises(ContextError, match=f"message 1 holds what is no text \\({attached['type']}\\)"):
        model.invoke([message])


async def test_a_long_history_is_read_and_the_last_human_message_is_the_question(reader: Reader) -> None:
    history = asked(
        [AIMessage("I see."), HumanMessage("It was 1911, they say."), AIMessage("No."), HumanMessage("When?")]
    )
    message = await reader.model.ainvoke(history)
    assert message.text == "It says: 1907 1911"
    [shown] = reader.prompts()
    assert "Question: When?\n" in shown and "'1 human', '2 ai', '3 human', '4 ai'" in shown.replace("Keys: ", "")


async def test_a_long_answer_is_streamed_and_usage_is_counted_once(reader: Reader) -> None:
    usage = UsageMetadataCallbackHandler()
    chunks = [c async for c in reader.model.astream(asked([HumanMessage("When?")]), {"callbacks": [usage]})]
    assert [c.text for c in chunks if c.text] == ["It ", "says: ", "1907"]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert whole.usage_metadata and "model_name" not in whole.response_metadata
    assert whole.response_metadata["stop_reason"] == "answered"
    assert usage.usage_metadata["root"]["total_tokens"] == whole.usage_metadata["total_tokens"]
    assert set(usage.usage_metadata) == {"root"}


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_what_it_does_is_traced_below_its_own_run(reader: Reader, way: str) -> None:
    tracer = Tracer()
    given, config = asked([HumanMessage("When?")]), {"callbacks": [tracer], "run_name": "reads"}
    reader.model.invoke(given, config) if way == "invoke" else list(reader.model.stream(given, config))
    [run] = tracer.runs
    assert (run.name, run.run_type) == ("reads", "llm")
    assert [child.name for child in run.child_runs] == ["rlm"]
    assert "root" in {child.name for child in all_runs(run.child_runs)}


def test_a_batch_takes_short_and_long_side_by_side(reader: Reader) -> None:
    out = reader.model.batch(["Hello", asked([HumanMessage("When?")])])
    assert [m.text for m in out] == ["You said: Hello", "It says: 1907"]


def test_stop_ends_a_long_answer_too(reader: Reader) -> None:
    assert reader.model.invoke(asked([HumanMessage("When?")]), stop=["07"]).text == "It says: 19"


class Built(BaseModel):
    """When it was built."""

    year: int


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_of_a_long_text_is_made_from_what_was_read(reader: Reader, method: str) -> None:
    structured = reader.model.with_structured_output(Built, method=method)
    assert structured.invoke(asked([HumanMessage("When?")])) == Built(year=1907)
    shown = reader.prompts()[-1]
    assert "It says: 1907" in shown and len(shown) < 8_000


@tool
def archive() -> str:
    """The whole archive."""
    return LONG


@tool
def note(year: int) -> str:
    """Notes a year."""
    return f"noted {year}"


def working(request: Request) -> str | Answer:
    """A root that is an agent's model as well: it looks in the archive, notes what was found, and says so."""
    if "```repl" in text_of(request.messages[0]["content"]):
        return READ
    results = [text_of(m["content"]) for m in request.messages if m["role"] == "tool"]
    if not results:
        return Answer(tools=(("archive", {}),))
    if len(results) == 1:
        return Answer(tools=(("note", {"year": int(re.findall(r"It says: (\d+)", results[0])[0])}),))
    return f"Done: {results[1]}"


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_an_agent_s_model_still_calls_its_tools_over_a_long_history_which_is_read_once(way: str) -> None:
    with ModelServer(by_model({"root": working})) as server:
        reader = Reader(server)
        agent = create_agent(reader.model, [archive, note], checkpointer=InMemorySaver())
        given, config = {"messages": [("human", "When was the pier built?")]}, {"configurable": {"thread_id": "1"}}
        out = agent.invoke(given, config) if way == "invoke" else await agent.ainvoke(given, config)
    assert out["messages"][-1].text == "Done: noted 1907"
    read = [prompt for prompt in reader.prompts() if "```repl" in prompt]
    assert len(read) == 1 and len(reader.prompts()) == 4
    assert max(map(len, reader.prompts())) < 10_000
    assert any(isinstance(m, ToolMessage) and m.text == LONG for m in out["messages"]), "the state keeps all"


async def test_an_agent_s_message_stream_shows_each_answer_once_and_nothing_of_the_reading() -> None:
    with ModelServer(by_model({"root": working})) as server:
        agent = create_agent(Reader(server).model, [archive, note])
        given = {"messages": [("human", "When was the pier built?")]}
        texts = [
            m.text async for m, _ in agent.astream(given, stream_mode="messages") if not isinstance(m, ToolMessage)
        ]
    assert "".join(texts) == "Done: noted 1907"


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_human_is_asked_through_the_agent_whose_model_it_is(way: str, runs_left_waiting: None) -> None:
    def root(request: Request) -> str:
        return "```repl compose\nFINAL(' '.join(llm_query_batched(['a?', 'b?'])))\n```"

    with ModelServer(by_model({"root": root, "sub": lambda request: "yes"})) as server:
        agent = create_agent(Reader(server, approve_above=1).model, checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}

        async def step(given: Any) -> Any:
            return agent.invoke(given, config) if way == "invoke" else await agent.ainvoke(given, config)

        out = await step({"messages": asked([HumanMessage("When?")])})
        assert out["__interrupt__"][0].value["calls"] == 2
        out = await step(Command(resume="approve"))
        assert out["messages"][-1].text == "yes yes"
        assert server.asked("root") == 1


def test_with_tools_the_oldest_of_many_short_messages_are_read_for_it(reader: Reader) -> None:
    talk: list[BaseMessage] = [SystemMessage("Be kind.")]
    for n in range(100):
        talk += [HumanMessage(f"In {1900 + n % 10} " + "so " * 300), AIMessage("thus " * 300)]
    usage = UsageMetadataCallbackHandler()
    given = [*talk, HumanMessage("What was in 1907?")]
    message = reader.model.bind_tools([note]).invoke(given, {"callbacks": [usage]})
    assert message.tool_calls[0]["args"] == {"year": 1900}, "what was found first"
    assert message.usage_metadata and "model_name" not in message.response_metadata
    assert usage.usage_metadata["root"]["total_tokens"] == message.usage_metadata["total_tokens"]
    shown = reader.prompts()[-1]
    assert shown.startswith("Be kind.") and "too long to be shown" in shown and "What was in 1907?" in shown
    assert len(shown) < 70_000


def test_what_belongs_to_the_model_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="no effect on RLMChatModel: temperature; give it to its model"):
        RLMChatModel(model=OfflineRoot(), temperature=0)


def test_its_profile_is_the_inner_model_s_without_a_window() -> None:
    inner = OfflineRoot(profile={"max_input_tokens": 9, "tool_calling": True})
    assert RLMChatModel(model=inner).profile == {"tool_calling": True}


def test_a_conversation_without_a_question_is_an_error() -> None:
    with pytest.raises(ContextError, match="no question"):
        RLMChatModel(model=OfflineRoot()).invoke([SystemMessage(LONG)])


def test_parameters_of_the_rlm_reach_it(reader: Reader) -> None:
    model = RLMChatModel(model=reader.model.model, limits=Limits(max_turns=1), name="book")
    graph = model._graph("")
    assert graph.name == "book"
    assert model.rlm["limits"].max_turns == 1
