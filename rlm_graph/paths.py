"""Files as contexts: the sources of a file, of several, of a directory; and whether they are still the same.

Files stay where they are. Several are listed in a manifest: `{"root", "as", "files": [[relative path,
encoding], …], "stamps": [[bytes, time of change in ns, hash of the content], …]}`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal

import xxhash

from rlm_graph.describe import plain, shape_of_files, shape_of_text
from rlm_graph.errors import ContextError
from rlm_graph.files import (
    TAIL,
    Scan,
    Stamp,
    Unreadable,
    change,
    is_always_hashed,
    left_out,
    looks_binary,
    scan,
    walk,
    why,
)
from rlm_graph.state import Source
from rlm_graph.tokens import Sample


def from_path(path: Path, exclude: Sequence[str], encoding: str) -> tuple[Source, bytes | None]:
    """The source of a file or a directory, and for a directory its manifest.

    Raises:
        ContextError: If there is nothing there to read; see `hold`.
    """
    real = _resolved(path)
    return _directory(path, real, exclude, encoding) if real.is_dir() else _file(path, real, encoding)


def _file(path: Path, real: Path, encoding: str) -> tuple[Source, None]:
    sample = Sample()
    found = _scanned(path, real, encoding, sample)
    _refuse_blank(path, [found])
    source = _files_source("file", real, [found], sample, found.encoding)
    source["name"] = plain(path.name or real.name)
    source["about"] = shape_of_text(found.lines)
    source["pin"] = _pin([found.stamp], found.stamp.digest)
    return source, None


def from_paths(paths: Sequence[Path], encoding: str) -> tuple[Source, bytes]:
    """The source of several files, and their manifest.

    Raises:
        ContextError: If one of them cannot be read.
    """
    reals = list(dict.fromkeys(_resolved(path) for path in paths))
    folder = next((real for real in reals if real.is_dir()), None)
    if folder:
        raise ContextError(f"{folder} is a directory: in a list give paths to files, or give the directory alone")
    root = Path(os.path.commonpath([real.parent for real in reals]))
    sample = Sample()
    scans = {real.relative_to(root).as_posix(): _scanned(real, real, encoding, sample) for real in reals}
    _refuse_blank("these files", list(scans.values()))
    return _manifested("files", root, scans, sample, encoding)


def _directory(path: Path, root: Path, exclude: Sequence[str], encoding: str) -> tuple[Source, bytes]:
    try:
        listing = walk(root, exclude)
    except OSError as error:
        raise ContextError(f"{path}: {why(error)}") from error
    sample = Sample()
    scans: dict[str, Scan] = {}
    skipped = listing.skipped
    for name in listing.files:
        try:
            scans[name] = scan(root / name, encoding, sample, binary=False)
        except Unreadable as error:
            skipped.append((name, str(error)))
        except OSError as error:
            skipped.append((name, why(error)))
    missing = [plain(line) for line in left_out(skipped, listing.excluded, exclude)]
    if not scans:
        raise ContextError(f"{path} has no readable text file{_because(missing)}")
    _refuse_blank(path, list(scans.values()))
    source, manifest = _manifested("directory", root, scans, sample, encoding)
    source["left_out"] = missing
    return source, manifest


def _manifested(
    kind: Literal["file", "files", "directory"],
    root: Path,
    scans: dict[str, Scan],
    sample: Sample,
    encoding: str,
) -> tuple[Source, bytes]:
    found = list(scans.values())
    names = list(scans)
    stamps = [one.stamp for one in found]
    source = _files_source(kind, root, found, sample, encoding)
    source["pin"] = _pin(stamps, xxhash.xxh3_128_hexdigest(repr([names, stamps]).encode()))
    source["about"] = plain(shape_of_files(names, [one.chars for one in found]))
    manifest = {
        "root": str(root),
        "as": "dict",
        "files": [[name, one.encoding] for name, one in scans.items()],
        "stamps": [astuple(stamp) for stamp in stamps],
    }
    return source, json.dumps(manifest).encode()


def _files_source(
    kind: Literal["file", "files", "directory"],
    path: Path,
    scans: Sequence[Scan],
    sample: Sample,
    encoding: str,
) -> Source:
    return Source(
        type="rlm_context",
        kind=kind,
        name=plain(path.name or str(path)),
        chars=sample.chars,
        tokens=sample.tokens(),
        items=len(scans),
        head=plain(scans[0].head),
        tail=plain(scans[-1].tail if len(scans) == 1 else (scans[-1].head + scans[-1].tail)[-TAIL:]),
        left_out=[],
        path=str(path),
        encoding=encoding,
    )


def _scanned(path: Path, real: Path, encoding: str, sample: Sample) -> Scan:
    """As `scan`, of a file that the user named: what stands in the way is an error."""
    try:
        return scan(real, encoding, sample)
    except OSError as error:
        raise ContextError(f"{path}: {why(error)}") from error
    except Unreadable as error:
        if error.at is None:
            raise ContextError(f"{path}: {error}") from error
        if encoding == "utf-8" and looks_binary(real):
            raise ContextError(
                f"{path} is a binary file, no text: have its text extracted first (of a PDF or an office document by a "
                "LangChain document loader, say), and give that"
            ) from error
        raise ContextError(
            f"{path} is {error}: the byte at position {error.at} does not belong. If you know its encoding, "
            f'say so, as in hold(path, encoding="latin-1")'
        ) from error


def _resolved(path: Path) -> Path:
    try:
        real = path.expanduser().resolve(strict=True)
        str(real).encode()
    except UnicodeEncodeError as error:
        raise ContextError(f"{plain(str(path))}: a path that is not UTF-8 cannot be kept") from error
    except OSError as error:
        raise ContextError(f"{path}: {why(error)}") from error
    except (RuntimeError, ValueError) as error:  # a loop of links, "~" without a home, a NUL in the path
        raise ContextError(f"{plain(str(path))}: {error}") from error
    return real


def _refuse_blank(what: Path | str, scans: Sequence[Scan]) -> None:
    if all(one.blank for one in scans):
        only = "only white space" if any(one.chars for one in scans) else "no text: empty"
        raise ContextError(f"{what}: {only}")


def _because(missing: Sequence[str]) -> str:
    return f" (left out: {'; '.join(missing[:5])}{'; …' if len(missing) > 5 else ''})" if missing else ""


def _pin(stamps: Sequence[Stamp], digest: str) -> str:
    """Bytes, time of the last change (ns) and a hash."""
    return f"{sum(stamp.size for stamp in stamps)} {max(stamp.changed for stamp in stamps)} {digest}"


def refuse_changed(source: Source, manifest: dict[str, Any] | None) -> None:
    """Compares files with what they were when they were taken in.

    Raises:
        ContextError: If one of them is gone or is another.
    """
    root = Path(source["path"])
    if manifest is None:
        size, changed, digest = source["pin"].split()
        stamps = [("", Stamp(int(size), int(changed), digest))]
    else:
        names = [name for name, _ in manifest["files"]]
        stamps = [(name, Stamp(*stamp)) for name, stamp in zip(names, manifest["stamps"], strict=True)]
    hashed = is_always_hashed(sum(stamp.size for _, stamp in stamps))
    changes = ((name, change(root / name, stamp, hashed=hashed)) for name, stamp in stamps)
    found = [f"{name}: {what}" if name else what for name, what in changes if what]
    if found:
        more = f"; and {len(found) - 3:,} more files" if len(found) > 3 else ""
        raise ContextError(
            f"{root} changed since it was taken in: {plain('; '.join(found[:3]))}{more}; take it in again"
        )
