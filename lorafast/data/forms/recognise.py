"""Which form a file has, by its name and by what is in it. Text is what is left."""
from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping

from ...errors import LoraFastError
from ..shapes import KEYS
from ..source import HEAD_BYTES, Source
from . import Form
from .arrow import ARROW_FILE, PARQUET, ArrowFiles, Parquet
from .delimited import Delimited, header_delimiter
from .json_document import JsonDocument
from .json_lines import BOM, JsonLines

JSON_SUFFIXES, LINES_SUFFIXES = (".json", ".jsonl", ".ndjson"), (".jsonl", ".ndjson")

_PANDAS = "import pandas; pandas.{reader}({name}).to_json({target}, orient='records', lines=True)"
_YAML = "import json, yaml; [print(json.dumps(r)) for r in yaml.safe_load(open({name}))]"
CONVERTERS = {
    (".xlsx", ".xls", ".ods"): ("a spreadsheet", f'python -c "{_PANDAS}"'.replace("{reader}", "read_excel")),
    (".xml",): ("XML", f'python -c "{_PANDAS}"'.replace("{reader}", "read_xml")),
    (".yaml", ".yml"): ("YAML", f'python -c "{_YAML}" > {{target}}'),
    (".pkl", ".pickle"): ("a pickle, which may run code", f'python -c "{_PANDAS}"'.replace("{reader}", "read_pickle")),
    (".db", ".sqlite", ".sqlite3"): ("a database", 'sqlite3 -json {name} "SELECT * FROM the_table" > {target}'),
    (".zip",): ("a ZIP archive", "unzip {name}"),
    (".tar",): ("an archive", "tar xf {name}"),
    (".bz2",): ("compressed", "bunzip2 -k {name}"),
    (".xz",): ("compressed", "unxz -k {name}"),
    (".zst",): ("compressed", "zstd -d {name}"),
    (".pdf",): ("a PDF", "pdftotext {name}"),
    (".docx", ".odt", ".epub"): ("a document", "pandoc -t plain {name} -o {text}"),
}
"""Suffixes of what is neither records nor text -> what it is, and the line that makes it so."""

MAGIC = {b"PK\x03\x04": ".zip", b"%PDF": ".pdf", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst",
         b"SQLite format 3": ".db"}


def recognise(source: Source, data_format: str = "auto", names: Mapping[str, str] | None = None) -> Form | None:
    """The form of the records in a file; None for text.

    data_format   auto, text, jsonl (JSON of any arrangement), csv, tsv
    names         see parse_record; they also name columns
    LoraFastError when the file cannot be read, or holds neither.
    """
    if source.is_folder:
        return ArrowFiles()
    head = source.head()
    known = list(names or ())
    if data_format == "text":
        return None
    if data_format == "jsonl":
        return json_form(head, source.suffix) or JsonLines()
    if data_format != "auto":
        return Delimited("\t" if data_format == "tsv" else header_delimiter(head, known) or ",", known)
    if head.startswith(PARQUET) or source.suffix == ".parquet":
        return Parquet()
    if head.startswith(ARROW_FILE) or source.suffix in (".arrow", ".feather"):
        return ArrowFiles()
    refuse_others(source, head)
    if form := json_form(head, source.suffix):
        return form
    delimiter = header_delimiter(head, known)
    if source.suffix in (".csv", ".tsv") and head:
        return Delimited(delimiter or ("\t" if source.suffix == ".tsv" else ","), known)
    return Delimited(delimiter, known) if delimiter else None


def refuse_others(source: Source, head: bytes) -> None:
    """LoraFastError where name or contents say that it is something else than records or text."""
    by_magic = next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), "")
    for suffixes, (what, line) in CONVERTERS.items():
        if source.suffix in suffixes or by_magic in suffixes:
            raise LoraFastError(f"training data '{source.name}' is {what}, which lorafast does not read; convert it: "
                                + filled_in(line, source.name, source.suffix))


def filled_in(line: str, name: str, suffix: str) -> str:
    """A line of a shell with the names of the file, and of what it becomes, quoted as Python or the shell wants it."""
    stem = name.removesuffix(suffix)
    quote_name = repr if "python" in line else shlex.quote
    quote_target = repr if "to_json" in line else shlex.quote
    return (line.replace("{name}", quote_name(name)).replace("{target}", quote_target(f"{stem}.jsonl"))
            .replace("{text}", shlex.quote(f"{stem}.txt")))


def json_form(head: bytes, suffix: str) -> Form | None:
    """How JSON is arranged in a file that begins like this; None where it is no JSON."""
    data = head.removeprefix(BOM).lstrip()
    is_whole = len(head) < HEAD_BYTES
    named = suffix in JSON_SUFFIXES
    if suffix in LINES_SUFFIXES and data[:1] not in (b"{", b"["):
        return JsonLines()
    if not named and data[:1] not in (b"{", b"["):
        return None
    first, line_end, _ = data.partition(b"\n")
    if _is_object(first):
        return JsonLines()
    if not line_end and not is_whole and data[:1] == b"{":              # one line fills all that was read
        return JsonLines() if _first_key(data) in KEYS else JsonDocument()
    if data[:1] == b"{" and _breaks_at(data, is_whole) == "first line":
        return JsonLines() if suffix in LINES_SUFFIXES or any(map(_is_object, data.splitlines()[1:10])) else (
            JsonDocument() if named else None)
    if named or re.match(rb"""\[\s*\{\s*["}]""", data):
        return JsonDocument()
    is_json = (is_whole and _is_json(data)) or (data[:1] == b"{" and _breaks_at(data, is_whole) in ("nowhere", "end"))
    return JsonDocument() if is_json else None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), (dict, list))
    except (ValueError, RecursionError):
        return False


def _first_key(data: bytes) -> str:
    match = re.match(rb'\{\s*"([^"\\]*)"\s*:', data)
    return match[1].decode("utf-8", "replace") if match else ""


def _breaks_at(data: bytes, is_whole: bool) -> str:
    """Where the first JSON value in this text breaks off: "nowhere", in the "first line", "inside", or at the "end"."""
    text = data.decode("utf-8", "replace")
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        if error.pos <= len(text.partition("\n")[0]):
            return "first line"
        is_cut = error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip()) - 1
        return "end" if not is_whole and is_cut else "inside"
    except (ValueError, RecursionError):        # a number of too many digits, too deep a nesting
        return "first line"
    return "nowhere"
