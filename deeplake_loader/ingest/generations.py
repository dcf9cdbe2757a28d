"""What programs that make images write into them: the settings in a PNG's text chunks, as columns.

Read are Stable Diffusion webui's ``parameters`` and ComfyUI's ``prompt``, a graph of nodes as JSON.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from deeplake_loader.ingest.members import read_json
from deeplake_loader.store import file_errors

MAX_TEXT = 4 << 20
_MAX_TEXTS = 16 << 20  # of all texts of an image
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MAGIC = b"\x89PNG\r\n\x1a\n"
_SETTING = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)\Z")
_NEGATIVE = "Negative prompt:"


def settings(data: bytes) -> dict[str, Any]:
    """The settings that an image was made with, by column; nothing where it holds none.

    >>> settings(b"no PNG at all")
    {}
    """
    texts = png_texts(data)
    if "parameters" in texts:
        return read_parameters(texts["parameters"])
    if "prompt" in texts:
        return read_graph(texts["prompt"])
    return {}


def settings_of(path: str) -> dict[str, Any]:
    """`settings` of a PNG file, of which only the texts are read, wherever in the file they are."""
    parts, left = [_MAGIC], _MAX_TEXTS
    with file_errors("read", path), open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return {}
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            length = int.from_bytes(head[:4], "big") + 4
            if head[4:] in _TEXTS and length <= min(left, MAX_TEXT + 4):
                parts += head, file.read(length)
                left -= length
            else:
                file.seek(length, 1)
    return settings(b"".join(parts))


def png_texts(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG (tEXt, zTXt, iTXt) by keyword; damaged and overlong ones are left out."""
    texts: dict[str, str] = {}
    at = len(_MAGIC) if data.startswith(_MAGIC) else len(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind in _TEXTS and length <= MAX_TEXT:
            keyword, _, rest = data[at + 8 : end - 4].partition(b"\0")
            text = _text(kind, rest)
            if text is not None:
                texts.setdefault(keyword.decode("latin-1"), text)
        at = end
    return texts


def _text(kind: bytes, rest: bytes) -> str | None:
    """The text of a chunk behind its keyword (PNG specification, sections 11.3.3.2 to 11.3.3.4)."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        if len(rest) < 2:
            return None
        packed, rest = rest[0] == 1, rest[2:]
        rest = rest.partition(b"\0")[2].partition(b"\0")[2]
    else:
        rest = rest[1:]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, MAX_TEXT)
        except zlib.error:
            return None
    return rest.decode("utf-8" if kind == b"iTXt" else "latin-1", "replace")


def read_parameters(text: str) -> dict[str, Any]:
    """webui's text: the prompt, the negative prompt, and a last line of settings.

    >>> read_parameters("a cat\\nNegative prompt: dog\\nSteps: 20, CFG scale: 7, Size: 512x768")
    {'prompt': 'a cat', 'negative_prompt': 'dog', 'steps': 20, 'cfg_scale': 7.0, 'width': 512, 'height': 768}
    """
    *lines, last = text.strip().split("\n")
    found = _SETTING.findall(last)
    if len(found) < 3:
        lines, found = [*lines, last], []
    before, negative, after = "\n".join(lines).partition(f"\n{_NEGATIVE}")
    if not negative and before.startswith(_NEGATIVE):
        before, after, negative = "", before.removeprefix(_NEGATIVE), _NEGATIVE
    row: dict[str, Any] = {"prompt": before.strip()}
    if negative:
        row["negative_prompt"] = after.strip()
    for name, value in found:
        key = re.sub(r"\W+", "_", name.strip().lower())
        size = _SIZE.match(value.strip()) if key == "size" else None
        if size:
            row |= {"width": int(size[1]), "height": int(size[2])}
        else:
            row.setdefault(key, _value(key, value.strip()))
    return row


_FLOATS = frozenset(("cfg_scale", "denoising_strength", "hires_upscale", "eta"))
_INTEGERS = frozenset(("steps", "seed", "clip_skip", "hires_steps", "ensd", "variation_seed"))


def _value(key: str, text: str) -> Any:
    try:
        if key in _INTEGERS:
            return int(text)
        if key in _FLOATS:
            return float(text)
        return json.loads(text) if text.startswith('"') else text
    except ValueError:
        return text


def read_graph(text: str) -> dict[str, Any]:
    """ComfyUI's graph: the settings of its first sampler, the texts that lead to it, and the graph itself."""
    try:
        graph = read_json(text)
    except ValueError:
        return {}
    if not isinstance(graph, dict):
        return {}
    row: dict[str, Any] = {"graph": graph}
    nodes = [node for node in graph.values() if isinstance(node, dict)]
    sampler = next((n for n in nodes if "KSampler" in str(n.get("class_type"))), None)
    given = sampler.get("inputs") if sampler else None
    if not isinstance(given, dict):
        return row
    for name, key in (("positive", "prompt"), ("negative", "negative_prompt")):
        found = _linked_text(graph, given.get(name))
        if found is not None:
            row[key] = found
    renamed = {"noise_seed": "seed", "cfg": "cfg_scale", "sampler_name": "sampler"}
    for name in ("seed", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"):
        value = given.get(name)
        if isinstance(value, int | float | str):
            row[renamed.get(name, name)] = float(value) if name in ("cfg", "denoise") else value
    return row


def _linked_text(graph: Mapping[str, Any], link: Any) -> str | None:
    """The text of the node that a link [node, output] leads to."""
    node = graph.get(str(link[0])) if isinstance(link, list) and link else None
    text = node.get("inputs", {}).get("text") if isinstance(node, dict) else None
    return text if isinstance(text, str) else None
