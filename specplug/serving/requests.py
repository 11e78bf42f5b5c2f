"""The bodies of requests: the fields that are followed. Of all others :mod:`fields` decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from specplug.serving import fields
from specplug.serving.fields import Others

MOST_IDS = 1024
"""Entries that a list of token ids, of words or of biases may have."""
MOST_STOPS = 64
"""Strings of ``stop``: OpenAI takes 4, and evaluations give vLLM and llama.cpp more."""
RANDOM_SEED = -1
"""The seed that asks for a random one, as llama.cpp and vLLM have it."""
MOST_ALLOWED = 1 << 16
"""Token ids that ``allowed_token_ids`` may have."""

MOST_MESSAGES = 1 << 14
"""Messages of a chat, parts of a message, and prompts of a request."""
MOST_TOKENS = 1 << 20
"""Token ids of a prompt."""
MOST_CHARACTERS = 1 << 24
"""Of a text; the server's bound of a body's bytes is lower unless it was raised."""
MOST_PROPERTIES = 1 << 14
"""Fields of a schema's object, of a structural tag, or of a chat template's variables."""
LARGEST = (1 << 31) - 1
"""Of numbers of tokens."""


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start} is half of a surrogate pair (U+{ord(text[error.start]):X})"
        raise ValueError(f"{half}: it is no Unicode text") from None
    return text


def _not_zero(value: int) -> int:
    if not value:
        raise ValueError("it must be -1 or at least 1")
    return value


def _few(value: Any) -> Any:
    """Refuse an object of too many fields before each of them is checked."""
    if isinstance(value, dict) and len(value) > MOST_IDS:
        raise ValueError(f"it has {len(value)} entries: {MOST_IDS} at most")
    return value


Text = Annotated[str, Field(max_length=MOST_CHARACTERS), AfterValidator(_whole)]
Name = Annotated[str, Field(max_length=MOST_IDS)]
Object = Annotated[dict[str, Any], Field(max_length=MOST_PROPERTIES)]
NonEmpty = Annotated[Text, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, max_length=MOST_IDS)]
Tokens = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MOST_TOKENS)]
Length = Annotated[int, Field(ge=1, le=LARGEST)]
Penalty = Annotated[float, Field(ge=0.01, le=100)]
Schema = Annotated[
    Annotated[Object, Tag("(object)")]
    | Annotated[bool, Tag("(boolean)")]
    | Annotated[NonEmpty, Tag("(text)")],
    Discriminator(
        lambda value: (
            "(text)"
            if isinstance(value, str)
            else "(boolean)"
            if isinstance(value, bool)
            else "(object)"
        )
    ),
]
"""A JSON schema, or its text."""
Choice = Annotated[list[NonEmpty], Field(fail_fast=True, min_length=1, max_length=MOST_IDS)]


def _kind(value: Any) -> str:
    """Which alternative a value is meant as, so that errors are about that one."""
    if isinstance(value, str | None):
        return "(text)"
    if not isinstance(value, list) or not value:
        return "(list)"
    return {int: "(tokens)", list: "(lists)"}.get(type(value[0]), "(list)")


def _describe_others(schema: dict[str, Any], body: type[Body]) -> None:
    """In the OpenAPI description, harmless fields are there, and unknown ones are errors."""
    for name, why in body.others.harmless.items():
        schema["properties"][name] = {"description": f"Ignored: {why}."}
    schema["additionalProperties"] = False


class Body(BaseModel):
    """An object of a request."""

    model_config = ConfigDict(
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra=_describe_others,
    )
    others: ClassVar[Others] = fields.NOTHING
    """What becomes of the fields that are not declared."""

    @classmethod
    def followed(cls) -> frozenset[str]:
        """The declared fields, as they are written in JSON."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="before")
    @classmethod
    def _check_others(cls, given: Any) -> Any:
        kind = cls.model_fields.get("type")
        meant = kind is None or (
            isinstance(given, Mapping) and given.get("type") in get_args(kind.annotation)
        )
        if isinstance(given, Mapping) and meant:  # else its type is wrong
            cls.others.check(given, cls.followed())
        return given


class TextPart(Body):
    """A piece of a message; only text is understood."""

    others = fields.PART
    type: Literal["text"]
    text: Text


Content = Annotated[
    Annotated[Text, Tag("(text)")]
    | Annotated[list[TextPart], Field(fail_fast=True, max_length=MOST_MESSAGES), Tag("(list)")],
    Discriminator(lambda value: "(list)" if isinstance(value, list) else "(text)"),
]


class Message(Body):
    """One turn of a conversation."""

    others = fields.MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Text | None = None
    """Of who speaks; for the chat template."""
    reasoning_content: Text | None = None
    """What the model thought before it answered; for the chat template."""
    reasoning: Text | None = None
    """Another name of ``reasoning_content``."""


class StreamOptions(Body):
    """What a stream has beside its text."""

    others = fields.STREAM_OPTIONS
    include_usage: bool | None = None
    """A last chunk without choices has ``usage`` and ``metrics``."""
    include_token_origins: bool | None = None
    """Choices have ``tokens``: id, text, and who made each of them."""


class Prediction(Body):
    """The answer that is expected, such as the file that is to be edited."""

    type: Literal["content"]
    content: Content


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """A JSON object."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(default=None, alias="schema")
    """What the object is like; null: any object."""


class NamedSchema(Body):
    """A JSON schema."""

    name: Name | None = None
    description: Text | None = None
    schema_: Object = Field(alias="schema")
    strict: bool | None = None
    """Ignored: the answer always fits the schema."""


class JsonSchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class TagStructure(Body):
    """JSON between two strings."""

    begin: NonEmpty
    schema_: Schema = Field(alias="schema")
    """Of what is between them."""
    end: Text


class StructuralTagFormat(Body):
    """Any text, in which certain strings begin structured parts; as vLLM has it, in either form:
    structures and triggers, or format."""

    type: Literal["structural_tag"]
    structures: (
        Annotated[list[TagStructure], Field(fail_fast=True, min_length=1, max_length=MOST_IDS)]
        | None
    ) = None
    triggers: (
        Annotated[list[NonEmpty], Field(fail_fast=True, min_length=1, max_length=MOST_IDS)] | None
    ) = None
    """Strings after which one of the structures must follow, each the beginning of its own."""
    format: Object | None = None
    """The other form, which parts of the text have formats of their own in."""


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat,
    Field(discriminator="type"),
]


class StructuredOutputs(Body):
    """What an answer must be like; as vLLM has it."""

    others = fields.STRUCTURED_OUTPUTS
    json_: Schema | None = Field(default=None, alias="json")
    regex: NonEmpty | None = None
    choice: Choice | None = None
    """One of these texts."""
    grammar: NonEmpty | None = None
    """In Lark's syntax, or llama.cpp's GBNF."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: NonEmpty | None = None
    """A structural tag, as the text of its JSON."""
    disable_any_whitespace: bool | None = None
    """JSON without spaces and line feeds between its parts."""
    disable_additional_properties: bool | None = None
    """Objects of a schema have the properties that it names, and no others."""
    whitespace_pattern: NonEmpty | None = None
    """What may be between the parts of JSON, as a regular expression."""


class GenerateRequest(Body):
    """What chat and completions have in common."""

    others = fields.REQUEST
    model: Name | None = None
    """None: the one that is served."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    echo: bool | None = None
    """A completion begins with its prompt; a chat's answer with the last message, if that is the
    assistant's."""
    speculation: bool | None = None
    """False: nothing is drafted for this request. The text is the same."""
    prediction: Prediction | None = None

    # --- where an answer ends ----------------------------------------------------------------
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    """As max_tokens."""
    max_new_tokens: Length | None = None
    """As max_tokens."""
    n_predict: Annotated[int, Field(ge=-1, le=LARGEST), AfterValidator(_not_zero)] | None = None
    """As max_tokens; -1: no bound but the server's own."""
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    """Neither a stop token nor a stop string ends the answer before."""
    stop: Annotated[
        Annotated[NonEmpty | None, Tag("(text)")]
        | Annotated[list[NonEmpty], Field(fail_fast=True, max_length=MOST_STOPS), Tag("(list)")],
        Discriminator(lambda value: "(list)" if isinstance(value, list) else "(text)"),
    ] = None
    stop_token_ids: TokenIds | None = None
    """Tokens that end the answer, beside the model's own."""
    ignore_eos: bool | None = None
    """The model's own stop tokens do not end the answer."""
    include_stop_str_in_output: bool | None = None
    """The stop string or token that ends the answer is part of it."""
    skip_special_tokens: bool | None = None
    """False: special tokens are part of the text. True unless given."""

    # --- how tokens are chosen ---------------------------------------------------------------
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    """The same seed gives the same text; None and -1: a random one."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """1 unless given; 0, or less than 0.0001: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] | None = None
    """0 and -1: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only the tokens whose surprise is nearest to what is to be expected; 1: all."""
    repetition_penalty: Penalty | None = None
    repeat_penalty: Penalty | None = None
    """As repetition_penalty."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=MOST_IDS)] | None = None
    """So many tokens in a row occur only once, the prompt included; 0: no such rule."""
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=MOST_IDS),
            BeforeValidator(_few),
        ]
        | None
    ) = None
    """By token id."""
    bad_words: Annotated[list[NonEmpty], Field(fail_fast=True, max_length=MOST_IDS)] | None = None
    """Texts that the answer does not have."""
    allowed_token_ids: (
        Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MOST_ALLOWED)]
        | None
    ) = None
    """Only these tokens are chosen; one that ends the answer only if it is among them."""

    # --- what an answer is like: one of these ------------------------------------------------
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    json_schema: Schema | None = None
    """As structured_outputs.json."""
    guided_json: Schema | None = None
    """As structured_outputs.json."""
    regex: NonEmpty | None = None
    """As structured_outputs.regex."""
    guided_regex: NonEmpty | None = None
    """As structured_outputs.regex."""
    guided_choice: Choice | None = None
    """As structured_outputs.choice."""
    grammar: Text | None = None
    """As structured_outputs.grammar; "": none."""
    ebnf: NonEmpty | None = None
    """As structured_outputs.grammar."""
    guided_grammar: NonEmpty | None = None
    """As structured_outputs.grammar."""
    structural_tag: NonEmpty | None = None
    """As structured_outputs.structural_tag."""
    guided_whitespace_pattern: NonEmpty | None = None
    """As structured_outputs.whitespace_pattern, of guided_json."""

    # --- the prompt, and what is told of it --------------------------------------------------
    truncate_prompt_tokens: (
        Annotated[int, Field(ge=-1, le=LARGEST), AfterValidator(_not_zero)] | None
    ) = None
    """The prompt's last so many tokens are kept; -1: as many as fit."""
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Log-probabilities of the prompt's tokens, and of so many of the likeliest; not in streams."""
    return_tokens_as_token_ids: bool | None = None
    """Log-probabilities name tokens ``token_id:…``."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse fields that contradict one another."""
        for names in SPELLINGS:
            given = [name for name in names if getattr(self, name) is not None]
            for name in given[1:]:
                first, other = getattr(self, given[0]), getattr(self, name)
                if first != other:
                    raise wrong(name, f"{name} {other} and {given[0]} {first}: give one of them")
        if self.prompt_logprobs is not None and self.stream:
            raise wrong("prompt_logprobs", "prompt_logprobs: a stream has none")
        return self


class ChatRequest(GenerateRequest):
    """Of ``/v1/chat/completions``."""

    others = fields.CHAT
    messages: Annotated[
        list[Message], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)
    ]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: Object | None = None
    """Variables of the chat template."""
    enable_thinking: bool | None = None
    """As ``chat_template_kwargs.enable_thinking``."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    """As ``chat_template_kwargs.reasoning_effort``; ``enable_thinking`` follows from it."""
    add_generation_prompt: bool | None = None
    """False: the prompt ends with the last message. True unless given."""
    continue_final_message: bool | None = None
    """The answer goes on with the last message, which stays open."""

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        """Refuse fields that contradict one another."""
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "top_logprobs: it needs logprobs to be true")
        if self.continue_final_message and self.add_generation_prompt:
            raise wrong(
                "add_generation_prompt",
                "add_generation_prompt: a message that goes on is not followed by another: "
                "leave continue_final_message out, or this",
            )
        return self


class CompletionRequest(GenerateRequest):
    """Of ``/v1/completions``."""

    others = fields.COMPLETION
    prompt: Annotated[
        Annotated[Text, Tag("(text)")]
        | Annotated[
            list[NonEmpty],
            Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES),
            Tag("(list)"),
        ]
        | Annotated[Tokens, Tag("(tokens)")]
        | Annotated[
            list[Tokens],
            Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES),
            Tag("(lists)"),
        ],
        Discriminator(_kind),
    ]
    """Text, token ids, or a list of either."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Only n is possible."""

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.best_of not in (None, self.n or 1):
            raise PydanticCustomError(
                fields.UNSUPPORTED,
                "{why}",
                {"why": f"best_of {self.best_of}: only n ({self.n or 1})", "field": "best_of"},
            )
        return self


LENGTHS = ("max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict")
"""Names of the number of new tokens."""
SPELLINGS = (
    LENGTHS,
    ("repetition_penalty", "repeat_penalty"),
)
"""Names of one thing each: a request may have several if they agree."""


def wrong(field: str, why: str) -> PydanticCustomError:
    """An error of a field that contradicts another."""
    return PydanticCustomError("invalid_value", "{why}", {"why": why, "field": field})
