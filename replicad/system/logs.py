"""Logs: one line a record, for journald, a terminal or a collector. Sole owner of structlog.

As text, a record reads "event key=value"; under journald each line begins with its priority (<4>) and carries no time,
since the journal has its own. As JSON it is one object a line. Control characters never reach the output as they are,
so that no file name can forge a line. Records of libraries that use `logging` come out the same way.

Importing this is cheap: structlog is loaded by the first record that is really written.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from replicad.model.show import show_path

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's priorities, as sd-daemon(3) wants them."""
_CHATTY = ("asyncssh", "aiohttp.access")
"""Libraries that log each connection and request as information; only their warnings are news."""
_NEEDS_QUOTES = frozenset(' "=')

_Record = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Settings:
    level: int = LEVELS["warning"]
    as_json: bool = False


_settings = _Settings()


class Logger:
    """Writes records of one part of the program. Field values: texts, numbers, paths (as bytes too); never secrets."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: object) -> None:
        """For whoever looks for a bug."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """What was done."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """What may need a person soon."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """What needs a person."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error with the traceback of the exception being handled: for bugs, not for the world's faults."""
        self._write("error", event, fields | {"exc_info": True})

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS[level] >= _settings.level:
            _emit(level, {"logger": self._name, "event": event} | fields)


def logger(name: str) -> Logger:
    """The logger of one part, such as "work.replicate"."""
    return Logger(name)


def configure(level: str, style: str) -> None:
    """From now on write records of `level` ("debug", "info", "warning", "error") and above, as "text" or "json"."""
    global _settings
    _settings = _Settings(LEVELS[level], style == "json")
    _pipeline.cache_clear()
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Foreign)]:
        root.removeHandler(handler)
    root.addHandler(_Foreign())
    root.setLevel(_settings.level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(_settings.level, logging.WARNING))


class _Foreign(logging.Handler):
    """Takes the records of libraries."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        fields: dict[str, Any] = {"logger": record.name, "event": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        _emit(level if level in LEVELS else "info", fields)


def _emit(level: str, fields: dict[str, Any]) -> None:
    getattr(_pipeline(), level)(**fields)


@cache
def _pipeline() -> Any:
    """structlog, set up for the present settings."""
    import structlog

    return structlog.wrap_logger(
        _Stderr(),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _plain_values,
            *([_json_time, structlog.processors.JSONRenderer(ensure_ascii=False)] if _settings.as_json else [_text]),
            _with_priority,
        ],
        wrapper_class=structlog.BoundLogger,
        cache_logger_on_first_use=True,
    )


class _Stderr:
    """Where rendered records go."""

    def write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            pass  # nobody reads the log any more; that is no reason to stop protecting data

    debug = info = warning = error = critical = write


def _plain_values(_logger: object, _level: str, record: _Record) -> _Record:
    for key, value in record.items():
        if isinstance(value, bytes):
            record[key] = show_path(value)
        elif isinstance(value, (Path, BaseException)):
            record[key] = str(value)
    return record


def _json_time(_logger: object, _level: str, record: _Record) -> _Record:
    return {"time": _now()} | dict(record)


def _text(_logger: object, _level: str, record: _Record) -> str:
    """ "event key=value"; a traceback follows on lines of its own."""
    level, traceback = record.pop("level"), record.pop("exception", "")
    name, event = record.pop("logger"), _printable(str(record.pop("event")))
    line = " ".join([f"{name}: {event}", *(f"{key}={_quoted(value)}" for key, value in record.items())])
    if not _to_journal():
        line = f"{_now()} {level:<7} {line}"
    return "\n    ".join([line, *map(_printable, traceback.splitlines())])


def _with_priority(_logger: object, level: str, text: Any) -> str:
    """The record's lines (a text by now), under journald each with its priority."""
    prefix = f"<{_PRIORITIES[level]}>" if _to_journal() else ""
    return "".join(f"{prefix}{line}\n" for line in text.split("\n"))


def _quoted(value: object) -> str:
    text = _printable(str(value))
    return '"' + text.replace('"', '\\"') + '"' if not text or _NEEDS_QUOTES & set(text) else text


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _now() -> str:
    from replicad.system.clock import Clock, format_ns  # brings asyncio along, which a light verb does not need

    return format_ns(Clock().now_ns())


def _to_journal() -> bool:
    """Whether stderr is the journal's stream: systemd names it by device and inode (JOURNAL_STREAM), and a child whose
    stderr goes elsewhere inherits the variable all the same."""
    named = os.environ.get("JOURNAL_STREAM")
    if not named:
        return False
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"
