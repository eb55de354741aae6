"""Options: what is typed becomes a value of the right kind within its bounds, or a sentence."""

from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox import options
from toolbox.cli import COMMON
from toolbox.commands import VERBS
from toolbox.errors import InputError
from toolbox.options import Field, build, fields, option


class Sample(msgspec.Struct, kw_only=True):
    model: Annotated[str, option("A model", ask=True)]
    names: Annotated[list[str], option("Names", positional=True, metavar="NAME")] = msgspec.field(default_factory=list)
    epochs: Annotated[float, option("Epochs", ge=0, le=100)] = 3.0
    limit: Annotated[int | None, option("Limit", ge=1)] = None
    method: Annotated[Literal["auto", "lora"], option("Method")] = "auto"
    packing: Annotated[bool, option("Packing")] = False


FIELDS = {field.name: field for field in fields(Sample)}


def test_fields_come_from_the_annotations_in_order() -> None:
    assert list(FIELDS) == ["model", "names", "epochs", "limit", "method", "packing"]
    assert FIELDS["model"].required
    assert FIELDS["model"].ask
    assert FIELDS["names"].many
    assert FIELDS["names"].positional
    assert FIELDS["limit"].kind is int
    assert FIELDS["method"].values == ("auto", "lora")
    assert FIELDS["epochs"].default == 3.0


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "2e-4", 2e-4),
        ("epochs", " 3 ", 3.0),
        ("limit", "7", 7),
        ("method", "lora", "lora"),
        ("packing", "是", True),
        ("packing", "OFF", False),
        ("model", ";touch x", ";touch x"),
        ("model", "$(rm -rf /)", "$(rm -rf /)"),
        ("model", "模型 '引号\" ", "模型 '引号\""),
        ("model", "two\nlines", "two\nlines"),
    ],
)
def test_parse(name: str, text: str, value: object) -> None:
    assert FIELDS[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text", "takes"),
    [
        ("epochs", "-1", "a number, >= 0, <= 100"),
        ("epochs", "nan", "a number"),
        ("epochs", "inf", "a number"),
        ("limit", "1.5", "a whole number, >= 1"),
        ("limit", "1_0x", "a whole number"),
        ("method", "qlora", "auto | lora"),
        ("packing", "maybe", "yes or no"),
    ],
)
def test_what_is_out_of_bounds_is_said_with_what_is_taken(name: str, text: str, takes: str) -> None:
    with pytest.raises(InputError) as refused:
        FIELDS[name].parse(text)
    assert FIELDS[name].flag in refused.value.message
    assert takes in refused.value.remedy


@given(st.text())
def test_any_text_parses_to_the_kind_or_is_refused(text: str) -> None:
    for field in FIELDS.values():
        try:
            value = field.parse(text)
        except InputError:
            continue
        assert isinstance(value, field.kind)
        if field.values:
            assert value in field.values
        if field.ge is not None:
            assert value >= field.ge


@given(st.floats(min_value=0, max_value=100))
def test_numbers_survive_their_spelling(number: float) -> None:
    assert FIELDS["epochs"].parse(repr(number)) == number


@given(st.integers(min_value=1))
def test_whole_numbers_survive_their_spelling(number: int) -> None:
    assert FIELDS["limit"].parse(str(number)) == number


def test_build_takes_typed_then_environment_then_default() -> None:
    environ = {"YCDY_TRY_IT_MODEL": "from-env", "YCDY_TRY_IT_NAMES": "a,b", "YCDY_TRY_IT_EPOCHS": "5"}
    built = build(Sample, {"epochs": "1"}, environ, "try it")
    assert (built.model, built.names, built.epochs, built.method) == ("from-env", ["a", "b"], 1.0, "auto")


def test_build_names_what_is_missing_and_where_to_look() -> None:
    with pytest.raises(InputError, match="--model is missing") as refused:
        build(Sample, {}, {}, "sample")
    assert "sample --help" in refused.value.remedy


def test_a_bad_value_in_the_environment_is_refused_too() -> None:
    with pytest.raises(InputError, match="--epochs"):
        build(Sample, {"model": "demo"}, {"YCDY_SAMPLE_EPOCHS": "many"}, "sample")


def every_command_field() -> list[tuple[str, Field]]:
    return [
        (command.name, field)
        for verb in VERBS
        for command in verb.commands()
        for field in options.fields(command.options)
    ]


def test_every_option_of_every_verb_is_described_and_none_hides_a_common_one() -> None:
    common = {field.name for field in COMMON}
    for command, field in every_command_field():
        assert field.help, f"{command} {field.flag}"
        assert not field.help.endswith("."), f"{command} {field.flag}: the help goes into sentences"
        assert field.name not in common, f"{command} {field.flag}"


def test_every_default_is_within_its_own_bounds() -> None:
    for command, field in every_command_field():
        for value in field.default if field.many and field.default else [field.default]:
            if value not in (None, "", [], False, True):
                assert field.parse(str(value)) == value, f"{command} {field.flag}"
