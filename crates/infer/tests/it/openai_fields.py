"""Prints, a line each, the fields of OpenAI's requests as its own Python SDK spells them: what its documentation is made of."""

from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
    completion_create_params as chat_create_params,
)
from openai.types.responses import (
    EasyInputMessageParam,
    ResponseFormatTextJSONSchemaConfigParam,
    ResponseTextConfigParam,
    response_create_params,
)
from openai.types.shared_params import FunctionDefinition
from openai.types.shared_params.response_format_json_schema import JSONSchema

REQUESTS = {
    "chat": (
        chat_create_params.CompletionCreateParamsNonStreaming,
        chat_create_params.CompletionCreateParamsStreaming,
    ),
    "chat messages.system": (ChatCompletionSystemMessageParam,),
    "chat messages.developer": (ChatCompletionDeveloperMessageParam,),
    "chat messages.user": (ChatCompletionUserMessageParam,),
    "chat messages.assistant": (ChatCompletionAssistantMessageParam,),
    "chat messages.tool": (ChatCompletionToolMessageParam,),
    "chat stream_options": (ChatCompletionStreamOptionsParam,),
    "chat tools.function": (FunctionDefinition,),
    "chat response_format.json_schema": (JSONSchema,),
    "completions": (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    "responses": (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ),
    "responses input.message": (EasyInputMessageParam,),
    "responses text": (ResponseTextConfigParam,),
    "responses text.format": (ResponseFormatTextJSONSchemaConfigParam,),
    "embeddings": (embedding_create_params.EmbeddingCreateParams,),
}

for place, kinds in REQUESTS.items():
    fields = {field for kind in kinds for base in kind.__mro__ for field in getattr(base, "__annotations__", {})}
    fields |= {field for kind in kinds for field in kind.__annotations__}
    print(f"{place}: {' '.join(sorted(fields))}")
