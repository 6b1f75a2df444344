"""The command line: commands, common options, and errors as one line with the contract's exit code."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache

import typer
from typer.exceptions import TyperException

from cogumi.cli.common import Common, DataOption, WorkspaceOption, begin_printing, json_was_printed
from cogumi.errors import CogumiError

_INTERRUPTED = 130
"""What Typer makes of Ctrl-C: 128 and the number of the signal."""

_HELP = (
    "Build a small language-model system stage by stage; let nothing move on without evidence.\n\n"
    "Start with `cogumi plan`, then `cogumi run`: the rehearsal needs no key, no GPU and no network. "
    "Exit codes: 0 PASS, 1 FAIL, 2 wrong usage, 3 UNDECIDED, 4 INFEASIBLE, 5 ERROR, 6 BUDGET."
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"cogumi {version('cogumi')}")
        raise typer.Exit


def _common(
    context: typer.Context,
    workspace: WorkspaceOption = None,
    data: DataOption = None,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    context.obj = Common(workspace, data)


_COMMANDS = (
    "plan", "run", "status", "gate", "eval", "compare", "reference", "data", "report", "dashboard",
    "humaneval", "export",
)  # fmt: skip
_FILES = {"eval": "evaluate"}
"""Files that are not called as their command."""
_BEFORE = ("--workspace", "--data")
"""Options with a value that may stand before the command."""


@cache
def application(only: str | None = None) -> typer.Typer:
    """Return the command line with all commands, or with one: what is not asked for is not imported."""
    app = typer.Typer(
        name="cogumi",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=_HELP,
    )
    app.callback()(_common)
    for name in _COMMANDS if only is None else (only,):
        importlib.import_module(f"cogumi.cli.{_FILES.get(name, name)}").register(app)
    return app


def _command_of(arguments: Sequence[str]) -> str | None:
    """Return the command that these arguments name, or None where that takes all commands to tell."""
    rest = iter(arguments)
    for argument in rest:
        if argument in _BEFORE:
            next(rest, None)
        elif not argument.startswith(tuple(f"{option}=" for option in _BEFORE)):
            return argument if argument in _COMMANDS else None
    return None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the contract's code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    begin_printing()
    # Threads of OpenMP that wait by spinning starve whoever else wants the core: two trainings at once fell
    # from 6,500 to 200 tokens a second each. So short a spin costs nothing alone (6,800). torch reads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    app = application(_command_of(arguments))
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="cogumi", standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except CogumiError as error:
        _fail(str(error), error.exit_code, arguments)
    except typer.Exit as stop:
        code = stop.exit_code
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            sys.exit(0)
        _fail(_usage_line(error), 2, arguments)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; run the same command again to go on", _INTERRUPTED, arguments)
    except BrokenPipeError:
        # The reader of our output went away (`cogumi … | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except UnicodeEncodeError as error:
        _fail(f"not UTF-8: {error.object[:80]!r} in an argument or a name; rename it", 2, arguments)
    except OSError as error:
        if error.filename is None or not error.strerror:
            _fail(_defect(error), 5, arguments)
        # A path that no command looked at before it used it: no defect of ours.
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
        _fail(f"{name[:200]}: {error.strerror}", 2 if error.errno == errno.ENAMETOOLONG else 5, arguments)
    except Exception as error:
        _fail(_defect(error), 5, arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_line(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "cogumi"
    message = " ".join(error.format_message().split())
    return f"{message} See `{command} --help`."


def _fail(line: str, code: int, arguments: list[str]) -> None:
    line = " ".join(line.splitlines())
    if "--json" in arguments and not json_was_printed():
        typer.echo(json.dumps({"error": line, "exit_code": code}))
    typer.echo(f"cogumi: {line}", err=True)
    sys.exit(code)


def _defect(error: Exception) -> str:
    """Keep the trace of a defect of ours in a file, and return the one line that tells of it."""
    import tempfile

    trace = traceback.format_exc()
    with tempfile.NamedTemporaryFile("w", prefix="cogumi-defect-", suffix=".txt", delete=False) as handle:
        handle.write(trace)
    first = str(error).splitlines()[0] if str(error) else ""
    return f"defect: {type(error).__name__}: {first} (trace in {handle.name}; please report it)"
