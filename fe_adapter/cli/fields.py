"""Options of a command that are the fields of a dataclass: the dataclass says each default and each help text once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from fe_adapter.errors import InputError


@dataclasses.dataclass(frozen=True)
class Fields:
    """Marks a parameter of a command, which is a dataclass: ``recipe: Annotated[TrainConfig, Fields("Training")]``.

    Args:
        panel: of the help, in which the options are.
        only: fields that are options; empty is all of them.
        without: fields that are not; like all that are no options they keep their defaults.
        panels: other panels, by field.
    """

    panel: str | None = None
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    panels: dict[str, str] = dataclasses.field(default_factory=dict)

    def of(self, config: Any) -> list[dataclasses.Field[Any]]:
        """The fields of ``config`` that are options."""
        fields = dataclasses.fields(config)
        return [f for f in fields if f.name not in self.without and (not self.only or f.name in self.only)]


def with_fields(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for typer, which sees options in the place of parameters marked by `Fields`.

    A command's parameters are all given by name; the marked ones get the dataclass made of the options.
    """
    parameters: list[inspect.Parameter] = []
    configs: dict[str, tuple[Any, list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        config, *marks = typing.get_args(parameter.annotation) or (None,)
        if marks and isinstance(marks[0], Fields):
            fields = marks[0].of(config)
            configs[parameter.name] = config, [field.name for field in fields]
            helps, kinds = help_texts(config), typing.get_type_hints(config)
            parameters += [_option(f, kinds[f.name], helps[f.name], marks[0]) for f in fields]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def given_options(**values: Any) -> None:
        for name, (config, names) in configs.items():
            try:
                values[name] = config(**{field: _read(field, values.pop(field)) for field in names})
            except TypeError as error:  # a list where the dataclass takes one number
                raise InputError(str(error)) from None
        command(**values)

    given_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return given_options


def help_texts(config: type) -> dict[str, str]:
    """What the docstring of ``config`` says of each field under "Args:"."""
    arguments = inspect.getdoc(config).partition("Args:\n")[2].partition("\n\n")[0]  # type: ignore[union-attr]
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", arguments, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("`", "") for name, text in entries}


def _option(field: dataclasses.Field[Any], kind: Any, text: str, mark: Fields) -> inspect.Parameter:
    flag = ["--" + field.name.replace("_", "-")] if field.default is False else []  # or there would be a --no-… as well
    default, metavar = field.default, None
    if field.name in WRITTEN:
        kind, metavar = str, WRITTEN[field.name].metavar
        default = ",".join(default) if isinstance(default, tuple) else str(default)
    option = typer.Option(
        *flag,
        help=escape(text[0].upper() + text[1:]),
        metavar=metavar,
        rich_help_panel=mark.panels.get(field.name, mark.panel),
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _read(field: str, value: Any) -> Any:
    return WRITTEN[field].read(value) if field in WRITTEN else value


def read_kernel_size(text: str) -> int | tuple[int, ...]:
    """``3`` or ``3,3,3``."""
    sizes = _integers(text)
    if sizes is None:
        raise InputError(f"kernel_size={text!r} is no number of taps and no K,KH,KW such as 3,3,3")
    return sizes


def read_dilation(text: str) -> Any:
    """``2``; ``1,1,2``; ``1,1,1;2,1,1``, three integers for each block; or a word, such as ``dynamic``."""
    dilations = [_integers(part) for part in text.split(";")]
    if None in dilations:
        return text  # `FEAdapterConfig` knows the words
    return dilations[0] if len(dilations) == 1 else tuple(dilations)


def _integers(text: str) -> int | tuple[int, ...] | None:
    if not re.fullmatch(r"-?[0-9]{1,9}(,-?[0-9]{1,9})*", text):
        return None
    numbers = tuple(map(int, text.split(",")))
    return numbers if len(numbers) > 1 else numbers[0]


def read_num_workers(text: str) -> int | str:
    """``4``, or a word: ``auto``."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else text  # `check_num_workers` knows the word


class Written(typing.NamedTuple):
    """A field whose value is written in some way, and how that is read."""

    read: Callable[[str], Any]
    metavar: str


WRITTEN = {
    "kernel_size": Written(read_kernel_size, "K|K,KH,KW"),
    "dilation": Written(read_dilation, "dynamic|N|N,N,…|T,H,W;…"),
    "num_workers": Written(read_num_workers, "auto|N"),
    "formats": Written(lambda text: tuple(text.split(",")), "json|csv|png|parquet,…"),
    "positions": Written(lambda text: tuple(text.split(",")), "attn|mlp|attn,mlp"),
    "tracker": Written(lambda text: None if text == "none" else text, "tensorboard|wandb|none"),
}
