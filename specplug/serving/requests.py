"""The bodies of requests. Fields that are not named here are ignored, or refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag


def _whole(text: str) -> str:
    text.encode()  # half a surrogate pair is an error, and no tokenizer takes it
    return text


Text = Annotated[str, AfterValidator(_whole)]
NonEmpty = Annotated[Text, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]


def _kind(value: Any) -> str:
    """Which alternative a value is meant as, so that errors are about that one."""
    if isinstance(value, str | None):
        return "(text)"
    if not isinstance(value, list) or not value:
        return "(list)"
    return {int: "(tokens)", list: "(lists)"}.get(type(value[0]), "(list)")


class _Body(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True
    )


class TextPart(_Body):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


Content = Annotated[
    Annotated[Text, Tag("(text)")] | Annotated[list[TextPart], Tag("(list)")],
    Discriminator(lambda value: "(text)" if isinstance(value, str) else "(list)"),
]


class Message(_Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class StreamOptions(_Body):
    """What a stream has beside its text."""

    include_usage: bool | None = None
    """A last chunk without choices has ``usage`` and ``metrics``."""
    include_token_origins: bool | None = None
    """Choices have ``tokens``: id, text, and who made each of them."""


class Prediction(_Body):
    """The answer that is expected, such as the file that is to be edited."""

    type: Literal["content"]
    content: Content


class TextFormat(_Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(_Body):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Body):
    """A JSON schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Ignored: the answer always fits the schema."""


class JsonSchemaFormat(_Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class GenerateRequest(_Body):
    """What chat and completions have in common."""

    model: str | None = None
    """None: the one that is served."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    """The same seed gives the same text; None: a random one."""
    stop: Annotated[
        Annotated[NonEmpty | None, Tag("(text)")]
        | Annotated[list[NonEmpty], Field(max_length=4), Tag("(list)")],
        Discriminator(lambda value: "(list)" if isinstance(value, list) else "(text)"),
    ] = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """1 unless given; 0, or less than 0.0001: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        dict[
            Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]
        ]
        | None
    ) = None
    """By token id."""
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    speculation: bool | None = None
    """False: nothing is drafted for this request. The text is the same."""
    return_tokens_as_token_ids: bool | None = None
    """Log-probabilities name tokens ``token_id:…``."""
    user: str | None = None
    """Ignored."""


class ChatRequest(GenerateRequest):
    """Of ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class CompletionRequest(GenerateRequest):
    """Of ``/v1/completions``."""

    prompt: Annotated[
        Annotated[Text, Tag("(text)")]
        | Annotated[list[NonEmpty], Field(min_length=1), Tag("(list)")]
        | Annotated[list[TokenId], Field(min_length=1), Tag("(tokens)")]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]],
            Field(min_length=1),
            Tag("(lists)"),
        ],
        Discriminator(_kind),
    ]
    """Text, token ids, or a list of either."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    """Only n is possible."""
