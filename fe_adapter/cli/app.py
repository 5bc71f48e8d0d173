"""The command line ``fe-adapter``: results go to stdout or files, words for people to stderr.

Exit codes: 2 for bad use or input, with one line on stderr; 1 for a failure while running; 130 after Ctrl-C; 143 after
SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer
from rich.logging import RichHandler

from fe_adapter import __version__
from fe_adapter.cli import crossval, data, demo, env, eval, export, plan, predict, push, train
from fe_adapter.cli.fields import with_fields
from fe_adapter.cli.options import words
from fe_adapter.data.live import without_password
from fe_adapter.errors import DiskFullError, InputError, PredictionError, Terminated, TrainingError
from fe_adapter.files import is_disk_full, printable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Temporal adapters on a frozen image transformer: train on videos, test, predict.",
)
of_data = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Look at data before training on it.")
app.add_typer(of_data, name="data")
for group, command, examples, settings in (
    (app, train.train, train.EXAMPLES, None),
    (app, plan.plan, plan.EXAMPLES, None),
    (app, eval.eval, eval.EXAMPLES, None),
    (app, crossval.crossval, crossval.EXAMPLES, crossval.CONTEXT),
    (app, predict.predict, predict.EXAMPLES, None),
    (app, export.export, export.EXAMPLES, None),
    (app, push.push, push.EXAMPLES, None),
    (of_data, data.check, data.EXAMPLES, None),
    (of_data, data.pack, data.PACK_EXAMPLES, None),
    (app, demo.demo, demo.EXAMPLES, None),
    (app, env.env, env.EXAMPLES, None),
):
    title = "Examples" if len(examples) > 1 else "Example"
    epilog = f"{title}:\n\n" + "\n\n".join(f"  {example}" for example in examples)
    group.command(epilog=epilog, context_settings=settings)(with_fields(command))


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point."""
    # beside a progress bar; where lines go to a file or a pipe they stay whole
    handler = RichHandler(console=words) if words.is_terminal else logging.StreamHandler()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # CUDA builds complain on stderr where there is no GPU
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        code = app(arguments, prog_name="fe-adapter", standalone_mode=False) or 0
        if code == 130:  # typer turns Ctrl-C into this
            _say_error("interrupted")
        return code
    except (InputError, TrainingError, PredictionError) as error:
        _say_error(str(error))
        return 1 if isinstance(error, (TrainingError, PredictionError, DiskFullError)) else 2
    except Terminated as error:
        _say_error("terminated")
        return int(error.code or 0)
    except (KeyboardInterrupt, typer.Abort):
        _say_error("interrupted")
        return 130
    except OSError as error:
        if not is_disk_full(error):
            raise
        _say_error(f"the disk is full ({error.strerror})")  # of what stdout goes to; files of ours say so themselves
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own errors have one
            raise
        if error.format_message():  # empty after the help that answers a bare fe-adapter
            _say_error(f"{error.format_message()} (see fe-adapter --help)")
        return 2


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _say_error(message: str) -> None:
    print(f"fe-adapter: {without_password(printable(message))}", file=sys.stderr)
