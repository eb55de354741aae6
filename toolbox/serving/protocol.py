"""What a request may hold: OpenAI's fields, typed and bounded; everything else is refused by name."""

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from toolbox.serving import media
from toolbox.serving.refused import Refused

CHARS_PER_TOKEN = 64
"""No tokenizer makes tokens longer than this on average: a longer prompt is refused before it is counted."""
TOKENS_PER_MESSAGE = 8
"""What a chat template adds to a message, about."""
DEFAULT_MAX_TOKENS = 1024

Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]


class Picture(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Part(msgspec.Struct, omit_defaults=True):
    type: str
    text: str = ""
    image_url: Picture | None = None


class ToolFunction(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: ToolFunction
    type: Literal["function"]


class Function(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """What has to be right of a tool; the engine gets it as it came, since templates print it as it stands."""

    type: Literal["function"]
    function: Function


class Message(msgspec.Struct, omit_defaults=True):
    """What an answer carries besides (refusal, annotations …) may come back in the next request, and is dropped."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, omit_defaults=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class TemplateKwargs(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Of a chat template's variables the ones a client may set; `chat_template` itself is not among them."""

    enable_thinking: bool | None = None


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every request may hold. Null means "as if absent"."""

    route: ClassVar[str]
    spoken: ClassVar[str]
    """The field that holds the prompt."""

    model: str = ""
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    """These five concern no answer: engines don't get them."""

    def texts(self) -> list[str]:
        """Everything that becomes part of the prompt."""
        raise NotImplementedError


class Sampling(Asked, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The fields that the routes which write share."""

    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    """These three are not OpenAI's; every engine here calls them so."""
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=16)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def asked_tokens(self) -> int | None:
        """How long an answer the client wants, in tokens."""
        return self.max_tokens


class ChatRequest(Sampling, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    route, spoken = "/v1/chat/completions", "messages"

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None
    chat_template_kwargs: TemplateKwargs | None = None

    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def texts(self) -> list[str]:
        parts = [
            part.text
            for message in self.messages
            for part in ([Part("text", message.content)] if isinstance(message.content, str) else message.content or [])
        ]
        calls = [call.function.arguments for message in self.messages for call in message.tool_calls or []]
        return [*parts, *calls, *([msgspec.json.encode(self.tools).decode()] if self.tools else [])]


class CompletionRequest(Sampling, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    route, spoken = "/v1/completions", "prompt"

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def texts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class EmbeddingRequest(Asked, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    route, spoken = "/v1/embeddings", "input"

    input: str | Annotated[list[str], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None

    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


NEUTRAL: dict[str, list[Any]] = {
    "n": [1], "presence_penalty": [0.0], "logprobs": [False, 0], "top_logprobs": [0],
    "response_format": [{"type": "text"}], "tool_choice": ["auto", "none"],
    "echo": [False], "best_of": [1], "suffix": [""],
}  # fmt: skip
"""Values that ask for nothing: an engine that disregards the field does the same."""


UNKNOWN = frozenset({"echo", "best_of", "suffix"})
"""Fields that no engine here is asked for: old clients send them with neutral values."""
SILENT = (*UNKNOWN, "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "modalities")
"""Fields that no engine gets."""
_PATH = re.compile(r"`\$\.?([^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `([^`]*)`")


def read(body: bytes, kind: type[Asked], ignores: frozenset[str], pictures: bool = False) -> Any:
    """`body` as a `kind` of request. Raises Refused (400), as OpenAI's API has it, for what is no such request.

    `ignores`: fields that the engine disregards. `pictures`: whether it sees any.
    """
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON: {error}", "invalid_json") from error
    if isinstance(request, ChatRequest) and request.tools:
        _check_tools(request.tools)
    if isinstance(request, CompletionRequest) and isinstance(request.prompt, list):
        (request.prompt,) = request.prompt
    for message in getattr(request, "messages", []):
        for part in message.content if isinstance(message.content, list) else []:
            media.check(part, pictures)
    for field in (ignores | UNKNOWN) & set(request.__struct_fields__):
        value = getattr(request, field)
        if value is not None and value not in NEUTRAL.get(field, []):
            raise Refused(400, f"The engine behind this server does not do {field!r}.", "unsupported_parameter", field)
    for field in SILENT:
        if hasattr(request, field):
            setattr(request, field, None)
    return request


def _check_tools(tools: list[dict[str, Any]]) -> None:
    try:
        msgspec.convert(tools, list[Tool])
    except msgspec.ValidationError as error:
        raise _invalid(str(error).replace("`$", "`$.tools")) from error


def _invalid(error: str) -> Refused:
    """msgspec's words, and the field they are about as OpenAI names it: `messages[0].role`."""
    found = [match[1] for match in (_PATH.search(error), _FIELD.search(error)) if match and match[1]]
    return Refused(400, error, "invalid_value", ".".join(found)[:100] or None)


def prompt_tokens(request: Sampling, context: int, count: Callable[[str], int]) -> int:
    """How many tokens the prompt has, about. `count` tells a text's. Raises Refused where it leaves no room."""
    texts = request.texts()
    if sum(map(len, texts)) > context * CHARS_PER_TOKEN:
        raise _too_long(context, request.spoken)
    tokens = sum(count(text) + TOKENS_PER_MESSAGE for text in texts)
    if tokens >= context:
        raise _too_long(context, request.spoken)
    return tokens


def input_tokens(request: EmbeddingRequest, context: int, count: Callable[[str], int]) -> int:
    """How many tokens the texts have. Raises Refused where one is longer than the model's context."""
    tokens = [context + 1 if len(text) > context * CHARS_PER_TOKEN else count(text) for text in request.texts()]
    if max(tokens) > context:
        raise _too_long(context, request.spoken)
    return sum(tokens)


def _too_long(context: int, param: str) -> Refused:
    message = f"The prompt does not fit into the model's context of {context} tokens."
    return Refused(400, message, "context_length_exceeded", param)
