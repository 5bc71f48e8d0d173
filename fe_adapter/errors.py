"""The exceptions that the command line turns into a line of advice instead of a stack trace, and words for them."""

import contextlib
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what was given, what was expected, what to do."""


class DiskFullError(InputError):
    """A disk filled up while something ran. What was there before is still there. The command line exits with 1."""


class Terminated(SystemExit):
    """SIGTERM came, as Slurm and containers send it; what was trained before it is safe."""

    def __init__(self) -> None:
        super().__init__(143)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, what is safe and what to change. The command line exits with 1."""


class OutOfMemoryError(TrainingError):
    """A step did not fit; what was trained before it is safe."""


class PredictionError(RuntimeError):
    """Some of what was to be predicted could not be; results of the rest are there. The command line exits with 1."""


def some(names: Iterable[str]) -> str:
    """The first of many names."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def first_line(error: BaseException) -> str:
    """What an error of a library says, at most 300 characters of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) < 300 else f"{lines[0][:300]} …"


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Within the block whatever a library raises, of its own, of another one or of the disk, is an `InputError` that
    says ``what`` could not be done; one that is an `InputError` stays as it is."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {first_line(error)}") from None
