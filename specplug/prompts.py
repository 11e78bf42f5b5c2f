"""Prompts: messages through a chat template, with what a caller may say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast

from specplug.arguments import shown
from specplug.templates import ChatTemplate, render_template

_RESERVED = {
    "messages": "the prompt itself",
    "add_generation_prompt": "an option of its own",
    "continue_final_message": "an option of its own",
}
_MARK = "HERE_THE_ANSWER_GOES_ON "  # its last character shows whether the template strips


class TemplateOptions(TypedDict, total=False):
    """How a chat template renders messages."""

    chat_template_kwargs: Mapping[str, Any]
    """Variables for the template, such as ``enable_thinking`` or ``reasoning_effort``."""
    add_generation_prompt: bool | None
    """End with the header of an assistant's turn; None: yes, unless the final message continues."""
    continue_final_message: bool
    """End within the final message, so that the answer continues it."""


class PromptOptions(TemplateOptions, total=False):
    """How a prompt becomes token ids."""

    chat: bool | None
    """Put text through the chat template as a user's message; None: if there is one."""
    truncate_prompt_tokens: int | None
    """Keep only so many tokens, the last ones; -1: as many as the context has room for beside the
    answer; None: all."""


def render_chat(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    **options: Unpack[TemplateOptions],
) -> str:
    """The text of a conversation, as transformers' ``apply_chat_template`` renders it.

    Args:
        template: of the model.
        messages: each with ``role`` and ``content`` (text, or parts), which only calls of tools
            lack; a field that is None counts as missing.
        special_tokens: what the template may name; variables of the same names come first.
        options: see :class:`TemplateOptions`.

    Raises:
        ValueError: what is no message, options that contradict one another, a variable that the
            template does not read, a final message that cannot be continued, or the template
            refuses.
    """
    variables = options.get("chat_template_kwargs") or {}
    continued = options.get("continue_final_message", False)
    header = options.get("add_generation_prompt")
    if continued and header:
        raise ValueError(
            "continue_final_message and add_generation_prompt exclude one another: the answer "
            "continues the final message, or it begins a turn of its own"
        )
    _check_variables(variables, template)
    chat = [_checked(place, message) for place, message in enumerate(messages)]
    final = ""
    if continued:
        chat[-1:], final = _marked(chat[-1] if chat else {})
    text = _rendered(
        template,
        chat,
        {
            **special_tokens,
            **variables,
            "add_generation_prompt": not continued if header is None else header,
        },
    )
    return _up_to_mark(text, final.strip()) if continued else text


def template_options(options: PromptOptions) -> TemplateOptions:
    """Those of the options that are for the template."""
    names = TemplateOptions.__annotations__
    return cast(TemplateOptions, {name: options[name] for name in options if name in names})  # type: ignore[literal-required]


def refuse_template_options(options: TemplateOptions, why: str) -> None:
    """Refuse what only a chat template can follow.

    Raises:
        ValueError: naming the option.
    """
    for name in TemplateOptions.__annotations__:
        value = options.get(name)
        if value is not None and value is not False and value != {}:
            raise ValueError(f"{name} {value!r}: it is for chat templates, and {why}")
    if options.get("add_generation_prompt") is False:
        raise ValueError(f"add_generation_prompt False: it is for chat templates, and {why}")


def truncate(
    tokens: list[int], wanted: int | None, *, context_limit: int, max_tokens: int
) -> list[int]:
    """The last tokens of a prompt; see :class:`PromptOptions`.

    Args:
        tokens: of the prompt.
        wanted: ``truncate_prompt_tokens``.
        context_limit: tokens that prompt and answer may have together.
        max_tokens: of the answer.

    Raises:
        ValueError: ``wanted`` is neither -1 nor at least 1.
    """
    if wanted is None:
        return tokens
    if wanted == -1:
        return tokens[-max(1, context_limit - max_tokens) :]
    if wanted < 1:
        raise ValueError(
            f"truncate_prompt_tokens {wanted}: it must be at least 1, or -1: what the context has "
            "room for"
        )
    return tokens[-wanted:]


def _check_variables(variables: Mapping[str, Any], template: ChatTemplate) -> None:
    for name in variables:
        if name in _RESERVED:
            raise ValueError(f"chat_template_kwargs: {name!r} is {_RESERVED[name]}")
        if name not in template.variables:
            known = ", ".join(sorted(template.variables - set(_RESERVED))) or "none"
            raise ValueError(
                f"chat_template_kwargs: the chat template reads no {name!r}; it reads {known}"
            )


def _checked(place: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message's fields.

    Raises:
        ValueError: it is no message.
    """
    made = {name: value for name, value in message.items() if value is not None}
    role, content = made.get("role"), made.get("content")
    if not isinstance(role, str) or not role:
        raise ValueError(f"messages[{place}]: role {shown(role)}: it must be text, such as 'user'")
    if content is None and "tool_calls" not in made:
        raise ValueError(f"messages[{place}]: it has no content: give text")
    if not isinstance(content, str | list | tuple | None):
        raise ValueError(f"messages[{place}]: content {shown(content)}: it must be text, or parts")
    return {**made, "content": list(content)} if isinstance(content, tuple) else made


def _rendered(
    template: ChatTemplate, chat: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """The text of messages whose content may be parts, whether the template takes parts or not."""
    parted = [message["content"] for message in chat if isinstance(message.get("content"), list)]
    if not parted:
        return render_template(template, chat, variables)
    try:
        text = render_template(template, chat, variables)
        if not any(str(parts) in text for parts in parted):  # as Python writes them
            return text
    except ValueError:  # it adds text to them
        pass
    return render_template(template, [_joined(message) for message in chat], variables)


def _joined(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its parts as one text, with line feeds between them, as vLLM joins them.

    Raises:
        ValueError: a part is no text.
    """
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise ValueError(f"the chat template takes text alone, not {shown(part)}")
        texts.append(text)
    return {**message, "content": "\n".join(texts)}


def _marked(message: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The message with a mark where its text ends, and that text."""
    content = message.get("content")
    if isinstance(content, str):
        return [{**message, "content": content + _MARK}], content
    parts = list(content) if isinstance(content, list | tuple) else []
    for place in reversed(range(len(parts))):
        if isinstance(parts[place], Mapping) and "text" in parts[place]:
            text = parts[place]["text"]
            parts[place] = {**parts[place], "text": text + _MARK}
            return [{**message, "content": parts}], text
    raise ValueError("continue_final_message: the final message has no text to continue")


def _up_to_mark(text: str, final: str) -> str:
    place = text.rfind(_MARK.strip())
    if place < 0 or final not in text:
        raise ValueError(
            "continue_final_message: the chat template leaves out some of the final message"
        )
    kept = text[:place]
    return kept if text.startswith(_MARK, place) else kept.rstrip()
