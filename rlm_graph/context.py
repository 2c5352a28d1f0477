"""What may be a context, and how it is taken in, kept, and handed to a kernel.

A context never travels: texts go to the content store once, files stay where they are. What travels is a
`Source`, a few hundred characters that name it. Its id is all that counts: whoever hands in a `Source` gets
what was stored under that id, and nothing that the rest of it claims (a path, say).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeAlias, cast

from langchain_core.documents import Document
from langchain_core.stores import BaseStore

from rlm_graph.describe import (
    describe,
    plain,
    shape_of_documents,
    shape_of_json,
    shape_of_mapping,
    shape_of_text,
    shape_of_texts,
)
from rlm_graph.errors import ContextError
from rlm_graph.files import HEAD, TAIL, check_encoding
from rlm_graph.paths import from_path, from_paths, refuse_changed
from rlm_graph.state import Source
from rlm_graph.store import FolderStore, default_store
from rlm_graph.tokens import Sample

__all__ = ["binding", "describe", "hold", "read_text", "take_in"]

Store: TypeAlias = BaseStore[str, bytes]
Kind = Literal["text", "list", "documents", "mapping", "json"]

_ACCEPTED = (
    "a str, a list of str, Documents, a dict of str, JSON-like data (dicts and lists), "
    "a pathlib.Path to a file or a directory, a list of Paths, or what hold() returned"
)
_PATH_LIKE = ("/", "./", "../", "~/", "file://")
_DEEPEST = 500
_LEAVES = (str, int, float, NoneType)


def hold(
    context: Any,
    *,
    store: Store | None = None,
    name: str | None = None,
    encoding: str = "utf-8",
    exclude: Sequence[str] = (),
) -> Source:
    """Takes a context in and returns a small reference to it, good as `context` of any run on the same store.

    Use it where the input is large or asked about more than once: LangGraph saves a run's raw input, and of a
    reference that is a few hundred bytes.

    Args:
        context: A `str`; a list of `str`; a `Document` or a list of them; a dict of `str`; JSON-like data; a
            `pathlib.Path` to a file or a directory; a list of such paths to files. A `str` is always text,
            only a `Path` is a path. Files stay where they are and must not change; a directory is what it
            was at this moment, so files that are added later are not part of it.
        store: The content store to keep it in. The default is a folder: `$RLM_GRAPH_HOME`, or the user's
            cache.
        name: What to call it, instead of the file's name or a word for its kind.
        encoding: Of files. "utf-8" also takes UTF-16 and UTF-32 that begin with a byte order mark.
        exclude: Of a directory: patterns as for `fnmatch`, each against the relative path and every part of
            it.

    Raises:
        ContextError: If it is empty, unreadable or of an unknown kind. The message says where and what to do.

    Example:
        >>> from langchain_core.stores import InMemoryByteStore
        >>> source = hold(["first report", "second report"], store=InMemoryByteStore(), name="reports")
        >>> source["kind"], source["items"], source["chars"]
        ('list', 2, 25)
    """
    return take_in(context, store or default_store(), exclude=exclude, encoding=encoding, name=name)


def take_in(
    context: Any,
    store: Store,
    *,
    exclude: Sequence[str] = (),
    encoding: str = "utf-8",
    name: str | None = None,
    from_cell: bool = False,
) -> Source:
    """As `hold`, with the store that the run uses. It reads files and blocks: call it in a thread.

    Args:
        context: See `hold`.
        store: Where its texts go.
        exclude: See `hold`.
        encoding: See `hold`.
        name: See `hold`.
        from_cell: It comes from a model's code, so it is data and nothing else: what has the form of a
            reference names nothing in the store, and a `str` that looks like a path is a text.

    Raises:
        ContextError: See `hold`.
    """
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    if not from_cell and isinstance(context, dict) and context.get("type") == "rlm_context":
        source = _known(context, store)
        if name is None or name == source["name"]:
            return source
        blob = None
    else:
        if isinstance(context, str) and not from_cell:
            _refuse_path_like(context)
        source, blob = _taken(context, patterns, check_encoding(encoding))
        place = f"{source.get('path')}\0{source.get('encoding')}\0{source.get('pin')}"
        source["id"] = _identity(source["kind"], place.encode() if blob is None else blob)
    if name is not None:
        source["name"] = plain(name)
    if blob is not None:
        _put(store, f"blob/{source['id']}", blob)
    store.mset([(f"source/{source['id']}", json.dumps(source).encode())])
    return source


def binding(source: Source, store: Store) -> dict[str, str]:
    """What a kernel needs to load a context: its form and a local file.

    Returns:
        `{"kind": "text", "path", "encoding"}`, `{"kind": "json", "path"}`, `{"kind": "documents", "path"}`
        (a JSON list of `{"page_content", "metadata"}`) or `{"kind": "files", "path"}` (a JSON manifest
        `{"root", "as", "files": [[relative path, encoding], …]}`). Ours is UTF-8 in which lone surrogates
        may stand: decode it with `errors="surrogatepass"`, and without translating newlines.

    Raises:
        ContextError: If the store does not have it, or a file of it has changed.
    """
    source = _known(source, store)
    kind = source["kind"]
    if kind == "file":
        refuse_changed(source, None)
        return {"kind": "text", "path": source["path"], "encoding": source["encoding"]}
    blob = _local(source, store)
    if kind == "text":
        return {"kind": "text", "path": str(blob), "encoding": "utf-8"}
    if kind in ("files", "directory"):
        refuse_changed(source, json.loads(blob.read_bytes()))
        return {"kind": "files", "path": str(blob)}
    return {"kind": "documents" if kind == "documents" else "json", "path": str(blob)}


def read_text(source: Source, store: Store) -> str:
    """The whole context as one would put it into a prompt. For small ones.

    A text is itself, JSON-like data its JSON; of several texts each follows a line that names it.

    Raises:
        ContextError: As `binding`.
    """
    source = _known(source, store)
    bound = binding(source, store)
    content = Path(bound["path"]).read_bytes()
    if bound["kind"] == "text":
        return content.decode(bound["encoding"], "surrogatepass" if source["kind"] == "text" else "strict")
    if source["kind"] == "json":
        return content.decode("utf-8", "surrogatepass")
    value = json.loads(content)
    if bound["kind"] == "files":
        root = Path(value["root"])
        named = [(repr(name), (root / name).read_bytes().decode(encoding)) for name, encoding in value["files"]]
    elif bound["kind"] == "documents":
        named = [(f"{i}", f"metadata: {_json(d['metadata'])}\n{d['page_content']}") for i, d in enumerate(value)]
    elif isinstance(value, dict):
        named = [(repr(key), text) for key, text in value.items()]
    else:
        named = [(f"{i}", text) for i, text in enumerate(value)]
    return "\n\n".join(f"--- context[{key}] ---\n{text}" for key, text in named)


def _taken(context: Any, exclude: Sequence[str], encoding: str) -> tuple[Source, bytes | None]:
    """The source of a context, its id still missing, and what goes to the store."""
    if isinstance(context, str):
        return _text(context)
    if isinstance(context, Path):
        return from_path(context, exclude, encoding)
    if isinstance(context, Document):
        return _documents([context])
    if isinstance(context, list | tuple):
        if not context:
            raise ContextError("context is an empty list")
        if all(isinstance(item, str) for item in context):
            return _texts(context)
        if all(isinstance(item, str | Document) for item in context):
            return _documents([Document(item) if isinstance(item, str) else item for item in context])
        if all(isinstance(item, Path) for item in context):
            return from_paths(context, encoding)
        return _data(context)
    if isinstance(context, dict):
        if not context:
            raise ContextError("context is an empty dict")
        if all(isinstance(key, str) and isinstance(text, str) for key, text in context.items()):
            return _mapping(context)
        return _data(context)
    if isinstance(context, bytes | bytearray | memoryview):
        kind = type(context).__name__
        raise ContextError(f"context is {kind}: decode it first, as in context.decode('utf-8'), or give a pathlib.Path")
    raise ContextError(f"context cannot be of type {type(context).__name__}; it can be {_ACCEPTED}")


def looks_like_a_place(text: str) -> bool:
    """Whether a text may have been meant as the name of a file, or as a URL: by its look, not by what exists."""
    return len(text) < 500 and re.fullmatch(r"https?://\S+|\S*\w\.[A-Za-z]\w{0,4}", text) is not None


def _refuse_path_like(text: str) -> None:
    if len(text) < 500 and text.startswith(_PATH_LIKE) and not any(char.isspace() for char in text):
        raise ContextError(
            f"context is a str that looks like a path: {text!r}. A str is always text: to have the file "
            "read, wrap it in pathlib.Path; if this is the text, add a newline to it"
        )


def _text(text: str) -> tuple[Source, bytes]:
    lines = text.count("\n") + (not text.endswith("\n"))
    return _described("text", [text], shape_of_text(lines)), text.encode("utf-8", "surrogatepass")


def _texts(texts: Sequence[str]) -> tuple[Source, bytes]:
    return _described("list", texts, shape_of_texts(texts)), _json_bytes(list(texts))


def _mapping(mapping: dict[str, str]) -> tuple[Source, bytes]:
    return _described("mapping", list(mapping.values()), shape_of_mapping(mapping)), _json_bytes(mapping)


def _documents(documents: Sequence[Document]) -> tuple[Source, bytes]:
    turned: set[str] = set()
    metadata = [_metadata(document.metadata, turned) for document in documents]
    texts = [document.page_content for document in documents]
    source = _described("documents", texts, shape_of_documents(texts, metadata, turned))
    pairs = zip(texts, metadata, strict=True)
    return source, _json_bytes([{"page_content": text, "metadata": fields} for text, fields in pairs])


def _metadata(metadata: dict[Any, Any], turned: set[str]) -> dict[str, Any]:
    """Metadata as JSON can hold it: the dates and paths of loaders become `str`, and `turned` names them."""
    fields: dict[str, Any] = {}
    for key, value in metadata.items():
        fault = _fault(value)
        fields[str(key)] = str(value) if fault else value
        if fault:
            turned.add(str(key))
    return fields


def _data(data: dict[Any, Any] | Sequence[Any]) -> tuple[Source, bytes]:
    fault = _fault(data)
    if fault:
        raise ContextError(f"context cannot be written as JSON: {fault}. It can be {_ACCEPTED}")
    try:
        text = _json(data)
    except (ValueError, TypeError, RecursionError) as error:
        raise ContextError(f"context cannot be written as JSON: {error}") from error
    source = _described("json", [text], shape_of_json(data))
    source["items"] = len(data)
    return source, text.encode("utf-8", "surrogatepass")


def _described(kind: Kind, texts: Sequence[str], about: str) -> Source:
    """The source of texts that are in memory."""
    if not any(text and not text.isspace() for text in texts):
        what = "only white space" if any(texts) else "empty"
        of_all = "" if kind in ("text", "json") else f": {len(texts):,} items without a text"
        raise ContextError(f"context is {what}{of_all}")
    sample = Sample()
    for text in texts:
        sample.add(text)
    first, last = texts[0], texts[-1]
    return Source(
        type="rlm_context",
        kind=kind,
        name=kind,
        chars=sample.chars,
        tokens=sample.tokens(),
        items=len(texts),
        head=plain(first[:HEAD]),
        # Of one text, what follows the head: a short one has no tail.
        tail=plain(last[max(HEAD, len(last) - TAIL) :] if len(texts) == 1 else last[-TAIL:]),
        about=plain(about),
        left_out=[],
    )


def _known(source: Any, store: Store) -> Source:
    """The source as it was stored, by its id alone."""
    id = source.get("id")
    if not isinstance(id, str) or not re.fullmatch("[0-9a-f]{32}", id):
        raise ContextError(f"not the id of a context: {id!r:.80}")
    found = store.mget([f"source/{id}"])[0]
    if found is None:
        raise ContextError(
            f"there is no context {id} in the content store {store!r:.200}; take it in again with hold()"
        )
    return cast(Source, json.loads(found))


def _identity(kind: str, content: bytes) -> str:
    digest = hashlib.blake2b(kind.encode() + b"\0", digest_size=16)
    digest.update(content)
    return digest.hexdigest()


def _put(store: Store, key: str, value: bytes) -> None:
    """Stores a blob, unless it is there: its key says what is in it."""
    if isinstance(store, FolderStore):
        path = store.path(key)
        if path.is_file() and path.stat().st_size == len(value):
            return
    store.mset([(key, value)])


def _local(source: Source, store: Store) -> Path:
    """The file of a source's blob; from a store that is no folder, a copy of it in the default store's."""
    key, copy = f"blob/{source['id']}", f"local/{source['id']}"
    if isinstance(store, FolderStore) and store.path(key).is_file():
        return store.path(key)
    folder = default_store()
    if not isinstance(store, FolderStore) and not folder.path(copy).is_file():
        content = store.mget([key])[0]
        if content is not None:
            folder.mset([(copy, content)])
    if isinstance(store, FolderStore) or not folder.path(copy).is_file():
        raise ContextError(f"the content of the context {source['id']} is not in the content store; take it in again")
    return folder.path(copy)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json_bytes(value: Any) -> bytes:
    return _json(value).encode("utf-8", "surrogatepass")


def _fault(value: Any) -> str | None:
    """Where JSON cannot hold a value, and why: `context['a'][3]: set`; None where it can."""
    stack = [(value, "context", 0)]
    while stack:
        item, place, depth = stack.pop()
        if depth > _DEEPEST:
            return f"{place[:60]}…: nested deeper than {_DEEPEST} levels"
        if isinstance(item, dict):
            for key, inner in item.items():
                if not isinstance(key, str):
                    return f"{place}: the key {key!r:.60} is {type(key).__name__}, not str"
                if not isinstance(inner, _LEAVES):
                    stack.append((inner, f"{place}[{key!r:.60}]", depth + 1))
        elif isinstance(item, list | tuple):
            inners = ((index, inner) for index, inner in enumerate(item) if not isinstance(inner, _LEAVES))
            stack.extend((inner, f"{place}[{index}]", depth + 1) for index, inner in inners)
        elif not isinstance(item, _LEAVES):
            return f"{place}: {type(item).__name__}"
    return None
