"""What `serve run specplug.serving.ray:app` takes, checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    create_model,
    model_validator,
)

from specplug.serving.keys import KeyRing
from specplug.serving.settings import ServerSettings, default_model_name
from specplug.text_file import read_text

M = TypeVar("M", bound=BaseModel)

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Autoscaling(BaseModel):
    """As many replicas as requests need; as text ``min/max/target``, such as ``1/4/8``."""

    model_config = _CONFIG
    min: int = Field(ge=1)
    max: int = Field(ge=1)
    target: float = Field(gt=0)
    """Requests, running and waiting, that a replica should have."""
    up_after: float = Field(default=30, gt=0)
    """How long there have to be more before replicas are added."""
    down_after: float = Field(default=600, gt=0)
    """How long there have to be fewer before replicas are taken away."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)/(\d+(?:\.\d+)?)", value)
        if not found:
            raise ValueError("need min/max/target, such as 1/4/8")
        return dict(zip(("min", "max", "target"), found.groups(), strict=True))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is less than min {self.min}")
        return self


class Arguments(BaseModel):
    """Of the application, beside those of :class:`ServerSettings`; times are in seconds."""

    model_config = _CONFIG
    bundle: Path
    """The bundle's folder, at the same place on every machine."""
    replicas: int = Field(default=1, ge=1)
    autoscaling: Autoscaling | None = None
    """In place of ``replicas``."""
    max_batch: int = Field(default=8, ge=1)
    """Rows that a replica decodes at once."""
    prefix_cache: int = Field(default=1024, ge=0)
    """Megabytes of memory for prompts that may come again, of each replica."""
    drafter: str = "auto"
    target_engine: str | None = None
    target_device: str | None = None
    cpus: float = Field(default=1, ge=0)
    """That a replica is given; its engine has as many threads, rounded up."""
    gpus: float = Field(default=0, ge=0)
    ingresses: int = Field(default=1, ge=1)
    """Processes that take requests and pass them on."""
    retries: int = Field(default=2, ge=0)
    """Further replicas that a request may be sent to when one is lost."""
    queue_timeout: float = Field(default=120, gt=0)
    """For a replica to take a request."""
    prefix_characters: int = Field(default=256, ge=1)
    """Requests with as much of their prompt in common go to one replica."""
    sticky_threshold: int | None = Field(default=None, ge=1)
    """By how many requests its queue may be longer than the shortest; None: half of max_batch."""
    allow_usage_stats: bool = False
    """Run on a Ray cluster that sends usage statistics to Ray's authors."""
    api_key_file: Path | None = None
    """As for ``specplug serve``; read where the application is deployed from."""
    server: InstanceOf[ServerSettings] = ServerSettings()

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Arguments:
        """Check what Ray passes: text from a command line, or values from a file.

        Raises:
            ValueError: every wrong argument, a line each.
        """
        names = set(cls.model_fields) - {"server"}
        own = {name: value for name, value in given.items() if name in names}
        rest = {name: value for name, value in given.items() if name not in names}
        wrong: list[ValidationError] = []
        settings = _valid(_Settings, rest, wrong)
        made = _valid(cls, own, wrong)
        if settings is None or made is None:
            known = [*sorted(names), *sorted(_Settings.model_fields)]
            raise ValueError("\n".join(line for error in wrong for line in _told(error, known)))
        if made.autoscaling is not None and "replicas" in given:
            raise ValueError("replicas and autoscaling: give one of them")
        if not made.bundle.is_absolute():
            if not made.bundle.is_dir():
                raise ValueError(f"bundle {str(made.bundle)!r} is no folder in {Path.cwd()}")
            made = made.model_copy(update={"bundle": made.bundle.absolute()})
        keys = _keys(made.api_key_file)
        chosen = settings.model_dump()
        if "model_name" not in rest:
            chosen["model_name"] = default_model_name(made.bundle)
        server = ServerSettings(**chosen, keys=keys)
        return made.model_copy(update={"server": server})

    @property
    def threshold(self) -> int:
        """The sticky threshold, chosen where it is not given."""
        return self.sticky_threshold or max(1, self.max_batch // 2)


def _keys(path: Path | None) -> KeyRing | None:
    return None if path is None else KeyRing.parse(read_text(path, "api_key_file"), str(path))


def _argument(hint: Any) -> Any:
    """The type of an argument: lists may be text, with commas, as a command line gives them."""
    return Annotated[hint, BeforeValidator(_listed)] if get_origin(hint) is tuple else hint


def _listed(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


_NOT_HERE = ("keys", "max_connections", "header_timeout", "idle_timeout")
"""Settings that are no arguments: keys come from ``api_key_file``, and the sockets are Ray's."""

# Made from the fields of ServerSettings, so that whatever it gains is an argument here, too.
_Settings: type[BaseModel] = create_model(
    "_Settings",
    __config__=_CONFIG,
    **{
        field.name: (_argument(get_type_hints(ServerSettings)[field.name]), field.default)
        for field in fields(ServerSettings)
        if field.name not in _NOT_HERE
    },
)  # type: ignore[call-overload]


def _valid(model: type[M], given: Mapping[str, Any], wrong: list[ValidationError]) -> M | None:
    """The model of what is given; None, and one more in ``wrong``, if it cannot be made."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong.append(error)
        return None


def _told(error: ValidationError, known: list[str]) -> Iterator[str]:
    for one in error.errors():
        name = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden":
            yield f"{name}: there is no such argument; there are {', '.join(known)}"
        elif one["type"] == "missing":
            yield f"{name} is missing"
        else:
            message = one["msg"].removeprefix("Value error, ")
            yield f"{name} {one['input']!r}: {message}"
