"""Base of every configuration model, and the text that lists allowed names."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError

EmbeddingKind = Literal["direct", "meta", "meta_unit"]
StoreDtype = Literal["float16", "float32"]
ShotConvention = Literal["paper", "released"]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Height or width of an image in pixels.
ImageSide = Annotated[int, Field(ge=1, le=4096)]
# Column of a table, in the form in which tables are read.
ColumnName = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]


def _refuse_conversions(schema: Any) -> Any:
    """Returns a pydantic-core schema with integers, numbers and booleans in strict mode."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_refuse_conversions, schema))
    if not isinstance(schema, dict):
        return schema
    strict = {"strict": True} if schema.get("type") in ("int", "float", "bool") else {}
    # Keys of mappings are text in JSON, which is YAML as well.
    kept = ("metadata", "keys_schema")
    return {key: value if key in kept else _refuse_conversions(value) for key, value in schema.items()} | strict


class StrictModel(BaseModel):
    """Frozen model: unknown keys, infinities and NaN are errors, defaults are validated as well.

    Numbers and booleans are not converted from other types, but an integer is a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # The strict mode of a whole model would also refuse lists as tuples and text as paths.
        return _refuse_conversions(handler(source))

    @model_validator(mode="wrap")
    @classmethod
    def _list_allowed_keys(cls, values: Any, validate: Callable[[Any], Self]) -> Self:
        """Adds the allowed keys to the errors of unknown ones, which pydantic's own do not name."""
        unknown = [key for key in values if key not in cls.model_fields] if isinstance(values, Mapping) else []
        if not unknown:
            return validate(values)
        details = [not_allowed_error("unknown key", str(key), sorted(cls.model_fields)) for key in unknown]
        try:
            validate({key: value for key, value in values.items() if key not in unknown})
        except ValidationError as error:
            details += map(_copy_error, error.errors())
        raise ValidationError.from_exception_data(cls.__name__, details)


class NamedSettings(StrictModel):
    """Settings of an implementation, picked by its registered name."""

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the implementation: all settings but the name."""
        return self.model_dump(exclude={"name"})


def not_allowed_error(problem: str, name: str, allowed: Iterable[str], key: str | None = None) -> InitErrorDetails:
    """Returns a pydantic error at `key` (by default `name`) that lists the allowed names."""
    message = f"{problem}; {allowed_names(name, allowed)}"
    return InitErrorDetails(type=custom_error("not_allowed", message), loc=(key or name,), input=name)


def allowed_names(name: str, allowed: Iterable[str]) -> str:
    """Returns `allowed: A, B`, and the one nearest to `name` if any is close."""
    allowed = list(allowed)
    nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"allowed: {', '.join(allowed)}{suggestion}"


def _copy_error(detail: ErrorDetails) -> InitErrorDetails:
    # The context of a copied custom error holds its message already.
    context = {key: value for key, value in detail.get("ctx", {}).items() if key != "message"}
    error = custom_error(detail["type"], detail["msg"], **context)
    return InitErrorDetails(type=error, loc=detail["loc"], input=detail["input"])


def custom_error(kind: str, message: str, **context: Any) -> PydanticCustomError:
    """Returns a pydantic error with that text."""
    return PydanticCustomError(kind, "{message}", {**context, "message": message})
