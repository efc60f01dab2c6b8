"""The front door: parse, run one verb, turn what went wrong into one line and an exit code.

Only this module ends the process' work: the engine raises. It is on the path of every call, so it imports nothing that a good call
does not need: Typer is loaded to show help, to explain a wrong command line and to complete words, never to run a verb.
"""

from __future__ import annotations

import errno
import sys

from rundctl.commands import table
from rundctl.commands.log import Log
from rundctl.commands.output import OutputClosed, write
from rundctl.commands.parse import HelpAsked, Parser
from rundctl.errors import RundctlError, UsageError
from rundctl.host import patience, stdio
from rundctl.lean import os, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from rundctl.commands.declare import Verb

_EXIT_FAILURE = 1
_EXIT_INTERRUPTED = 128 + 2
_EXIT_OUTPUT_CLOSED = 128 + 13  # as if SIGPIPE had ended us, which is what ends runc
_COMPLETION = "_RUNDCTL_COMPLETE"  # set by the shell's completion function, which Typer writes
_COMPLETION_FLAGS = ("--install-completion", "--show-completion")  # Typer's own


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the process' exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in _COMPLETION_FLAGS or os.getenv(_COMPLETION) is not None:
        return _interface(words)
    parser = Parser(words)
    log = Log("", "text", verbose=False)
    patience.configured_by(_configured_patience)
    try:
        parser.flags_before(table.GLOBAL_FLAGS)
        log = Log(parser.text["log"], parser.text["log-format"], verbose="debug" in parser.on)
        return _dispatch(parser, log)
    except HelpAsked:
        return _interface(words)
    except OutputClosed:
        return _close_output()
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BaseException as error:  # noqa: BLE001 (the one place where every failure becomes a line)
        return _report(error, words, log)


def entry() -> NoReturn:
    """Run the installed command. Nothing is left to clean up when `main` returns, and ending the interpreter in order costs 1 ms."""
    stdio.fill()
    # Whoever could write where kernels and templates are would choose what runs as root.
    os.umask(os.umask(0o077) | 0o022)
    # Ignored, as some callers leave it, the kernel would reap our children before we can, and `run` wait for ever.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = main()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None: the caller closed the descriptor
            try:
                stream.flush()
            except OSError:  # everything that matters was flushed, and its failure told, when it was written
                code = code or _EXIT_FAILURE
    os._exit(code)  # noqa: SLF001 (of the standard module it is the public name)


def _configured_patience() -> int:
    """Not asked by calls that wait for nobody."""
    from rundctl.engine import settings

    return settings.patience()


def _dispatch(parser: Parser, log: Log) -> int:
    if "version" in parser.on:
        from rundctl.commands import version

        write(version.text())
        return 0
    if not parser.rest:
        raise HelpAsked
    verb = _find(parser)
    parser.whole(verb)
    if verb.run is None:
        raise UsageError(f"{verb.name}: missing command")
    return verb.run(parser.options(log.debug, log.info, log.warn))


def _find(parser: Parser) -> Verb:
    """Take the verb's name (two words, for a group's) off the command line."""
    verb = table.load(parser.rest.pop(0))
    while verb.verbs and parser.rest:
        names = {inner.name.rpartition(" ")[2]: inner for inner in verb.verbs}
        if parser.rest[0] in ("--help", "-h"):
            raise HelpAsked
        word = parser.rest.pop(0)
        if word not in names:
            raise UsageError(f'{verb.name}: no such command "{word}"')
        verb = names[word]
    return verb


def _interface(words: list[str]) -> int:
    from rundctl.commands import interface

    return interface.show(words)


def _report(error: BaseException, words: list[str], log: Log) -> int:
    if isinstance(error, UsageError):
        error = _explain(error, words)
    log.error(_describe(error))
    if log.verbose:
        _trace(error, log)
    return error.exit_code if isinstance(error, RundctlError) else _EXIT_FAILURE


def _explain(error: UsageError, words: list[str]) -> UsageError:
    """Typer's words for the same mistake, with its suggestions; ours where Typer knows nothing better or cannot be loaded."""
    try:
        from rundctl.commands import interface

        better = interface.explain(words)
    except ImportError:
        return error
    return better or error


def _describe(error: BaseException) -> str:
    said = _say(error)
    if os.geteuid() != 0 and _is_denied(error):
        return f"{said} (rundctl needs root, and was called by user {os.geteuid()}: sudo rundctl ...)"
    return said


def _is_denied(error: BaseException | None) -> bool:
    """Whether it came of what only root may do."""
    while error is not None and not isinstance(error, PermissionError):
        error = error.__cause__ or error.__context__
    return error is not None


def _say(error: BaseException) -> str:
    if isinstance(error, RundctlError):
        return str(error)
    if isinstance(error, OSError):
        return _describe_oserror(error)
    return f"internal error: {type(error).__name__}: {error} (--debug shows where)"


def _describe_oserror(error: OSError) -> str:
    """``PATH: reason``. Not libc's words for ENOENT: podman would take them for a missing command and exit with 127."""
    reason = "is missing" if error.errno == errno.ENOENT else (error.strerror or str(error)).lower()
    return f"{error.filename}: {reason}" if error.filename else reason


def _trace(error: BaseException, log: Log) -> None:
    import traceback

    for line in "".join(traceback.format_exception(error)).splitlines():
        log.debug(line)


def _close_output() -> int:
    """Let the interpreter's own flush at exit find a stdout that works."""
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    return _EXIT_OUTPUT_CLOSED
