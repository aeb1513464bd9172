"""Fields of configs: their types and limits, and one line for a value that is outside of them."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import ml_collections
import pydantic

from cocu_jax.errors import UserError

# Strict: neither "3" nor 3.0 nor True is a whole number.
Flag = Annotated[bool, pydantic.Field(strict=True)]
Whole = Annotated[int, pydantic.Field(strict=True)]
Count = Annotated[Whole, pydantic.Field(ge=0)]
PositiveCount = Annotated[Whole, pydantic.Field(ge=1)]
Amount = Annotated[float, pydantic.Field(strict=True, ge=0, allow_inf_nan=False)]
PositiveAmount = Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[Amount, pydantic.Field(le=1)]
ShareBelowOne = Annotated[Amount, pydantic.Field(lt=1)]

# Of a dataclass of settings: a field that it does not have is refused.
only_its_fields = pydantic.with_config(extra="forbid")

S = TypeVar("S")


def read_settings(kind: type[S], fields: Mapping[str, Any], name: str) -> S:
    """An instance of a dataclass of settings, made from the fields of a config.

    Args:
        kind: the dataclass; its annotations say what is allowed.
        fields: values by name; nested dataclasses as mappings, tuples also as lists.
        name: of `fields` in error messages, such as "config.data".

    Raises:
        UserError: the first field that is missing, unknown, or has a value that is not allowed.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(_plain(fields))
    except pydantic.ValidationError as error:
        raise UserError(_line(error.errors()[0], name)) from None


def _plain(value):
    """Config dictionaries as dictionaries, however deep."""
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {key: _plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def _line(error: Mapping[str, Any], name: str) -> str:
    *outer, last = error["loc"]
    if error["type"] == "missing" and isinstance(last, int):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in outer)
        return f"{name}{place}={error['input']!r}: it must have more than {last} values"
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    if error["type"] == "missing":
        return f"{name}{place} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{name}{place}: there is no such field"
    message = error["msg"].removeprefix("Input ").replace("should be", "must be")
    return f"{name}{place}={error['input']!r}: it {message}"
