"""A question over a folder of web pages, through a LangChain loader; the documents' metadata comes along."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from rlm_graph import create_rlm
from rlm_graph.offline import OfflineReader, OfflineRoot


class Page(HTMLParser):
    """The title of a page and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.title, self.lines, self._within = "", [], ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within == "title":
            self.title += data.strip()
        elif self._within not in ("script", "style") and data.strip():
            self.lines.append(data.strip())


class PageLoader(BaseLoader):
    """Any loader does: `PyPDFDirectoryLoader`, `WebBaseLoader`, … Only `load()` is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lazy_load(self) -> Iterator[Document]:
        for file in sorted(self.folder.glob("*.html")):
            page = Page(file.read_text("utf-8"))
            yield Document("\n".join(page.lines), metadata={"source": file.name, "title": page.title})


documents = PageLoader(Path(__file__).parent / "pages").load()
print("loaded:", ", ".join(f"{d.metadata['source']} ({d.metadata['title']})" for d in documents))

# So few pages would go into one prompt; with 0 they are explored as thousands would be.
rlm = create_rlm(OfflineRoot(), OfflineReader(), direct_below=0)
out = rlm.invoke({"question": "When was the north pier built?", "context": documents})
print(out["answer"])
