"""The statements that were typed at the prompt, kept for the arrow keys of later ones.

``sql_history`` in the user's state folder: a line each, line feeds in it as 0x01 (as psql does), readable by the user
alone. What begins with a blank or speaks of a password is not kept.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from types import ModuleType

from deeplake_loader.cli.session import state_folder

_MOST = 1_000
_PRIVATE = 0o600
_SECRET = re.compile(r"\b(PASSWORD|SECRET|CREDENTIALS?)\b", re.IGNORECASE)


class Remembered:
    """The history of the line editor, where Python has one; a file that cannot be read or written is passed over."""

    def __init__(self) -> None:
        self._path = state_folder() / "sql_history"
        self._editor = _line_editor()
        if self._editor is not None:
            self._editor.set_auto_history(False)  # whole statements, not their lines
            self._editor.clear_history()
            for text in self._load():
                with suppress(ValueError):  # not of the locale's characters
                    self._editor.add_history(text)

    def add(self, text: str) -> None:
        """Keeps a statement or command."""
        if text[:1].isspace() or not text or _SECRET.search(text):
            return
        if self._editor is not None:
            last = self._editor.get_current_history_length()
            if last and self._editor.get_history_item(last) == text:
                return
            with suppress(ValueError):
                self._editor.add_history(text)
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(self._path, _packed([text]), os.O_APPEND)

    def _load(self) -> list[str]:
        try:
            with open(self._path, encoding="utf-8", errors="replace", newline="\n") as file:
                os.fchmod(file.fileno(), _PRIVATE)  # somebody may have let others read it
                lines = file.read().split("\n")[:-1]
        except OSError:
            return []
        kept = lines[-_MOST:]
        if len(lines) > 2 * _MOST:
            with suppress(OSError):
                new = self._path.with_name(f"sql_history.{os.getpid()}")
                self._write(new, "".join(f"{line}\n" for line in kept), os.O_TRUNC)
                os.replace(new, self._path)
        return [line.replace("\1", "\n") for line in kept]

    @staticmethod
    def _write(path: os.PathLike[str], text: str, how: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, _PRIVATE)
        with open(fd, "wb") as file:
            file.write(text.encode("utf-8", "replace"))


def _packed(texts: list[str]) -> str:
    return "".join(text.replace("\n", "\1") + "\n" for text in texts)


def _line_editor() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    return readline
