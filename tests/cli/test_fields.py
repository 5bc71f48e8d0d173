"""Options made of dataclasses: names, defaults, help, and how values are written."""

from __future__ import annotations

import dataclasses

import pytest
import typer

from fe_adapter.cli import app as cli
from fe_adapter.cli.fields import help_texts, read_dilation, read_kernel_size
from fe_adapter.cli.options import _as_option
from fe_adapter.config import FEAdapterConfig
from fe_adapter.data import ClipRecipe
from fe_adapter.errors import InputError
from fe_adapter.train.config import TrainConfig


@pytest.mark.parametrize("config", [TrainConfig, FEAdapterConfig, ClipRecipe])
def test_every_field_has_its_help(config):
    assert set(help_texts(config)) == {field.name for field in dataclasses.fields(config)}
    assert all(text and "`" not in text for text in help_texts(config).values())


def test_a_help_text_goes_on_over_lines():
    class Config:
        """One.

        Args:
            first: goes on
                and ``on``.
            second: is short.

        Raises:
            third: is none.
        """

    assert help_texts(Config) == {"first": "goes on and on.", "second": "is short."}


def test_train_has_the_defaults_of_the_dataclasses():
    command = typer.main.get_command(cli.app).commands["train"]
    options = {parameter.name: parameter for parameter in command.params}
    for config in (TrainConfig, ClipRecipe):
        for field in dataclasses.fields(config):
            if field.name != "precision":  # "auto" on the command line
                assert options[field.name].default == field.default
    assert (options["dilation"].default, options["kernel_size"].default) == ("dynamic", "3")
    assert options["positions"].default == "attn"
    assert (options["flip"].opts, options["flip"].secondary_opts) == (["--flip"], ["--no-flip"])
    assert (options["in_memory"].opts, options["in_memory"].secondary_opts) == (["--in-memory"], [])
    assert (options["causal"].opts, options["causal"].secondary_opts) == (["--causal"], [])
    assert not {"activation", "blocks", "backend"} & set(options)


@pytest.mark.parametrize(
    ("text", "value"), [("dynamic", "dynamic"), ("2", 2), ("0", 0), ("1,1,2,4", (1, 1, 2, 4)), ("2,1,1", (2, 1, 1)),
                      ("1,1,1;2,1,1", ((1, 1, 1), (2, 1, 1))), ("1;2,1,1", (1, (2, 1, 1)))]
)  # fmt: skip
def test_dilations(text, value):
    assert read_dilation(text) == value


@pytest.mark.parametrize("way", ["flag", "TOML"])
def test_three_numbers_for_each_block_are_written(way, tmp_path, capsys):
    """Refused for the number of blocks, which shows what was read; a folder of videos is not needed for that."""
    small = '{"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}'
    arguments = ["plan", "--backbone", "timm:vit_tiny_patch16_224", "--backbone-args", small, "--kernel-size", "3,3,3"]
    file = tmp_path / "recipe.toml"
    file.write_text("dilation = [[2, 1, 1], [1, 1, 1], [1, 2, 2]]\n")
    if way == "TOML":
        assert _as_option([[2, 1, 1], [1, 1, 1], [1, 2, 2]]) == "2,1,1;1,1,1;1,2,2"
        train = ["train", str(tmp_path), *arguments[1:], "--out", str(tmp_path / "run"), "--config", str(file)]
        assert cli.run(train) == 2
        assert "dilation" not in capsys.readouterr().err  # it is read, and the data are what is missing
    else:
        assert cli.run([*arguments, "--dilation", "2,1,1;1,1,1;1,2,2"]) == 2
        assert "dilation names 3 blocks, but 2 are adapted" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("-1", -1), ("3,1,1", (3, 1, 1))])
def test_kernel_sizes(text, value):
    assert read_kernel_size(text) == value


NO_NUMBERS = [
    "",
    "x",
    "3.0",
    "3,",
    ",3",
    "3,,3",
    "3, 3",
    " 3",
    "1e3",
    "0x3",
    "(3,3,3)",
    "dynamic,1",
    "٣",
    "²",
    "3\n",
    "9" * 5000,
]


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: repr(text[:9]))
def test_what_is_no_number_is_refused(text):
    with pytest.raises(InputError, match="is no number of taps"):
        read_kernel_size(text)
    with pytest.raises(InputError, match="is neither 'dynamic' nor"):
        FEAdapterConfig(dilation=read_dilation(text))
