"""Prints, a line each, the fields of OpenAI's requests as its own Python SDK spells them: what its documentation is made of."""

from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartImageParam,
    ChatCompletionContentPartInputAudioParam,
    ChatCompletionContentPartRefusalParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
    chat_completion_content_part_param,
    completion_create_params as chat_create_params,
)
from openai.types.responses import (
    EasyInputMessageParam,
    ResponseFormatTextJSONSchemaConfigParam,
    ResponseInputAudioParam,
    ResponseInputFileParam,
    ResponseInputImageParam,
    ResponseInputTextParam,
    ResponseOutputRefusalParam,
    ResponseOutputTextParam,
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
    "chat messages.content.text": (ChatCompletionContentPartTextParam,),
    "chat messages.content.image_url": (ChatCompletionContentPartImageParam,),
    "chat messages.content.input_audio": (ChatCompletionContentPartInputAudioParam,),
    "chat messages.content.file": (chat_completion_content_part_param.File,),
    "chat messages.content.refusal": (ChatCompletionContentPartRefusalParam,),
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
    "responses input.content.input_text": (ResponseInputTextParam,),
    "responses input.content.input_image": (ResponseInputImageParam,),
    "responses input.content.input_audio": (ResponseInputAudioParam,),
    "responses input.content.input_file": (ResponseInputFileParam,),
    "responses input.content.output_text": (ResponseOutputTextParam,),
    "responses input.content.refusal": (ResponseOutputRefusalParam,),
    "responses text": (ResponseTextConfigParam,),
    "responses text.format": (ResponseFormatTextJSONSchemaConfigParam,),
    "embeddings": (embedding_create_params.EmbeddingCreateParams,),
}

for place, kinds in REQUESTS.items():
    fields = {field for kind in kinds for base in kind.__mro__ for field in getattr(base, "__annotations__", {})}
    fields |= {field for kind in kinds for field in kind.__annotations__}
    print(f"{place}: {' '.join(sorted(fields))}")
