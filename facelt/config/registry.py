"""Registries of the implementations that a configuration picks by name.

An implementation registers itself where it is defined, with the pydantic model of its settings:

    @register_method("ride", RideSettings)
    class Ride(Method): ...

The modules of a registry's package are imported on its first lookup. Until then nothing heavy is loaded.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, MutableMapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import core_schema

from facelt.config.base import allowed_names, custom_error, not_allowed_error
from facelt.errors import UserError

Implementation = TypeVar("Implementation")


class Registry(MutableMapping[str, Implementation]):
    """Implementations by name, each with the model of its settings.

    `kind` is the noun in error messages. `package` is a module, or a package all of whose modules are imported on the
    first lookup. `key` is the settings' field that holds the name.
    """

    def __init__(self, kind: str, package: str, key: str = "name") -> None:
        self.kind, self.package, self.key = kind, package, key
        self._implementations: dict[str, Implementation] = {}
        self._settings: dict[str, type[BaseModel]] = {}
        self._is_loaded = False

    def register(
        self, name: str, settings: type[BaseModel] | None = None
    ) -> Callable[[Implementation], Implementation]:
        """Returns a decorator that registers an implementation; a pydantic model without `settings` is its own.

        Raises ValueError if the name is taken.
        """

        def decorate(implementation: Implementation) -> Implementation:
            if name in self._implementations:
                raise ValueError(f"the {self.kind} {name!r} is registered twice")
            self._implementations[name] = implementation
            if settings is not None:
                self._settings[name] = settings
            elif isinstance(implementation, type) and issubclass(implementation, BaseModel):
                self._settings[name] = implementation
            return implementation

        return decorate

    def find(self, name: str) -> Implementation:
        """Returns the implementation. Raises UserError with the allowed names."""
        if name not in self:
            raise UserError(f"unknown {self.kind} {name!r}; {allowed_names(name, self)}")
        return self[name]

    def settings(self, name: str) -> type[BaseModel]:
        """Returns the model of the settings. Raises KeyError for an unknown name, or one without settings."""
        self._load()
        return self._settings[name]

    def choice(self, *names: str) -> "SettingsChoice":
        """Returns metadata for `Annotated`: a field with the settings of any implementation, or of one of `names`.

        It validates `{"name": ..., ...}` by the registered model and accepts instances of that model.
        """
        return SettingsChoice(self, names)

    def name_choice(self, *names: str) -> "NameChoice":
        """Returns metadata for `Annotated`: a field with the name of any implementation, or one of `names`."""
        return NameChoice(self, names)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
                importlib.import_module(f"{self.package}.{module.name}")
        except BaseException:
            self._is_loaded = False
            raise

    def __getitem__(self, name: str) -> Implementation:
        self._load()
        return self._implementations[name]

    def __setitem__(self, name: str, implementation: Implementation) -> None:
        """Replaces an implementation and keeps its settings."""
        self._load()
        self._implementations[name] = implementation

    def __delitem__(self, name: str) -> None:
        del self._implementations[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._implementations)

    def __len__(self) -> int:
        self._load()
        return len(self._implementations)


class NameChoice:
    """Validator of a registered name."""

    def __init__(self, registry: Registry, names: tuple[str, ...]) -> None:
        self.registry, self._names = registry, names

    def names(self) -> tuple[str, ...]:
        return self._names or tuple(self.registry)

    def validate(self, value: Any) -> Any:
        if not isinstance(value, str) or value not in self.names():
            problem = f"{value!r} is not allowed; {allowed_names(str(value), self.names())}"
            raise custom_error("not_allowed", problem)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)


class SettingsChoice(NameChoice):
    """Validator of the settings of a registered implementation."""

    def validate(self, value: Any) -> BaseModel:
        key = self.registry.key
        if isinstance(value, BaseModel):
            name = getattr(value, key, None)
            if name in self.names() and isinstance(value, self.registry.settings(name)):
                return value
            raise custom_error("not_allowed", f"not the settings of a {self.registry.kind}")
        if not isinstance(value, dict):
            raise custom_error("not_allowed", f"expected a mapping with the key {key}")
        if key not in value:
            detail = {"type": "missing", "loc": (key,), "input": value}
            raise ValidationError.from_exception_data(self.registry.kind, [detail])
        name = value[key]
        if not isinstance(name, str) or name not in self.names():
            detail = not_allowed_error(f"{name!r} is not allowed", str(name), self.names(), key=key)
            raise ValidationError.from_exception_data(self.registry.kind, [detail])
        return self.registry.settings(name).model_validate(value)


METHODS = Registry("method", "facelt.methods")
MIXINGS = Registry("mixing method", "facelt.methods")
LOSSES = Registry("loss", "facelt.losses")
CLASS_WEIGHTS = Registry("class weighting", "facelt.losses")
METRIC_LOSSES = Registry("metric loss", "facelt.losses")
HEADS = Registry("head", "facelt.heads")
MARGINS = Registry("margin", "facelt.heads")
BACKBONES = Registry("backbone", "facelt.models")
EMBEDDINGS = Registry("embedding", "facelt.models")
SAMPLERS = Registry("sampler", "facelt.data.samplers")
OPENSET_SCORERS = Registry("open-set method", "facelt.openset")
DATA_KINDS = Registry("kind of data", "facelt.data", key="kind")

register_method = METHODS.register
register_mixing = MIXINGS.register
register_loss = LOSSES.register
register_class_weights = CLASS_WEIGHTS.register
register_metric_loss = METRIC_LOSSES.register
register_head = HEADS.register
register_margin = MARGINS.register
register_embedding = EMBEDDINGS.register
register_sampler = SAMPLERS.register
register_openset = OPENSET_SCORERS.register
register_data_kind = DATA_KINDS.register

SamplerName = Annotated[str, SAMPLERS.name_choice()]
