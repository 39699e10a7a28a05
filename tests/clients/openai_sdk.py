"""A program written for OpenAI: the official Python SDK, unmodified, with nothing changed but its base URL.

    python openai_sdk.py BASE_URL

Prints one JSON line a step: {models}, {plain}, {streamed, chunks, tokens}, {left}, {parsed}, {completion}, {call,
arguments}, {stored, status, metadata, events}, {vectors, tokens, near, far}, {refused, status, code, param} seven times. The fourth leaves a stream after its first piece. Exits with 1 if any step was not what an
OpenAI program expects.
"""

import json
import sys

from typing import Literal

from openai import APIStatusError, OpenAI
from pydantic import BaseModel

openai = OpenAI(base_url=sys.argv[1], api_key="unused")


def say(**line):
    print(json.dumps(line), flush=True)


def ask(model, content="Say hello.", **more):
    messages = [{"role": "user", "content": content}]
    return openai.chat.completions.create(model=model, messages=messages, max_tokens=12, **more)


class Verdict(BaseModel):
    mood: Literal["good", "bad"]
    sure: bool


def text_of(chunk):
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


good = True
models = [model.id for model in openai.models.list().data]
say(models=models)
plain = ask(models[0])
say(plain=plain.choices[0].message.content, finish=plain.choices[0].finish_reason, tokens=plain.usage.total_tokens)
good &= bool(plain.choices[0].message.content)
streamed, chunks, usage = "", 0, None
for chunk in ask(models[0], stream=True, seed=3, stream_options={"include_usage": True}):
    streamed += text_of(chunk)
    usage = chunk.usage or usage
    chunks += 1
say(streamed=streamed, chunks=chunks, tokens=usage.completion_tokens, cached=usage.prompt_tokens_details.cached_tokens)
good &= bool(streamed) and chunks >= 2 and 1 <= usage.completion_tokens <= 12
with ask(models[0], "Count to ten.", stream=True) as stream:
    left = next(text for text in map(text_of, stream) if text)
say(left=left)
question = [{"role": "user", "content": "What is the mood of: I like rain?"}]
verdict = openai.chat.completions.parse(model=models[0], messages=question, response_format=Verdict, max_tokens=40)
say(parsed=verdict.choices[0].message.parsed.model_dump())
plain = openai.completions.create(model=models[0], prompt="The capital of France is", max_tokens=4, temperature=0)
say(completion=plain.choices[0].text, finish=plain.choices[0].finish_reason)
good &= plain.choices[0].text.startswith(" Paris") and plain.choices[0].finish_reason == "length"
# A call, and what comes of it.
city = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": city}}]
asked = [{"role": "user", "content": "Is it cold in Rome?"}]
required = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60}
called = openai.chat.completions.create(model=models[0], messages=asked, tools=tools, **required).choices[0].message
call = called.tool_calls[0]
say(call=call.function.name, arguments=call.function.arguments)
good &= call.function.name == "weather" and "city" in json.loads(call.function.arguments)
result = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": -5}'}
told = openai.chat.completions.create(
    model=models[0], messages=[*asked, called, result], tools=tools, tool_choice="none", max_tokens=8
)
good &= bool(told.choices[0].message.content)
# A conversation that the agent keeps: gone on from, streamed, read, deleted.
first = openai.responses.create(
    model=models[0], input="My name is Ada.", store=True, max_output_tokens=8, metadata={"about": "a name"}
)
events = [event.type for event in openai.responses.create(
    model=models[0], input="And mine?", previous_response_id=first.id, store=True, max_output_tokens=8, stream=True
)]
read = openai.responses.retrieve(first.id)
say(stored=read.output_text, status=read.status, metadata=read.metadata, events=sorted(set(events)))
good &= read.output_text == first.output_text and read.metadata == {"about": "a name"} and read.status == first.status
good &= read.model == models[0] and read.usage.output_tokens == first.usage.output_tokens
good &= events[0] == "response.created" and events[-1] in ("response.completed", "response.incomplete")
openai.responses.delete(first.id)
try:
    openai.responses.retrieve(first.id)
    good = False
except APIStatusError as error:
    say(refused=error.message, status=error.status_code, code=error.code, param=error.param)
    good &= error.status_code == 404
# The SDK asks for base64 by itself and shows numbers; asked for numbers it gets the same.
texts = ["How do I bake bread?", "Mix flour, water, salt and yeast; let it rise and bake it.", "The ocean is deep."]
vectors = openai.embeddings.create(model=models[1], input=texts)
plainly = openai.embeddings.create(model=models[1], input=texts[0], encoding_format="float")
question, near, far = [item.embedding for item in vectors.data]
cosine = lambda one, other: sum(a * b for a, b in zip(one, other))
say(vectors=len(vectors.data), tokens=vectors.usage.prompt_tokens, near=cosine(question, near), far=cosine(question, far))
good &= len(question) == 384 and abs(cosine(question, question) - 1) < 1e-5 and vectors.usage.total_tokens > 20
good &= cosine(question, near) > cosine(question, far) + 0.2
# Alone or beside other texts: the same numbers, but for how they are written down (docs/reference/api.md).
good &= max(abs(a - b) for a, b in zip(question, plainly.data[0].embedding)) < 1e-6
# Not OpenAI's, so the SDK has no name for it, but it sends it.
ranking = {"model": models[1], "query": texts[0], "documents": texts[:0:-1], "top_n": 1, "return_documents": True}
ranked = openai.post("/rerank", body=ranking, cast_to=object)
say(ranked=ranked["results"])
good &= [(r["index"], r["document"]["text"]) for r in ranked["results"]] == [(1, texts[1])]
good &= abs(ranked["results"][0]["relevance_score"] - cosine(question, near)) < 1e-3
# Nor these, each at one price a text.
sorting = {"model": models[1], "inputs": ["The goalkeeper saved two penalties.", "Fry the onions in butter."],
           "labels": ["sport", {"name": "food", "description": "cooking and recipes"}]}
sorted_ = openai.post("/classify", body=sorting, cast_to=object)
say(classified=[(c["prediction"], c["labels"]) for c in sorted_["classifications"]], paid=sorted_["x402"]["amount"])
good &= [c["prediction"] for c in sorted_["classifications"]] == ["sport", "food"]
schema = {"type": "object", "properties": {"name": {"type": "string"}, "order": {"type": "integer"}},
          "required": ["name", "order"], "additionalProperties": False}
taking = {"model": models[0], "input": "Ines Okoro asks where order 4471 is.", "schema": schema}
taken = openai.post("/extract", body=taking, cast_to=object)
say(extracted=taken["data"], paid=taken["x402"]["amount"])
good &= taken["data"]["order"] == 4471 and set(taken["data"]) == {"name", "order"}
for path, body, field in [("/classify", {**sorting, "labels": []}, "labels"), ("/extract", {**taking, "schema": 7}, "schema")]:
    try:
        openai.post(path, body=body, cast_to=object)
        good = False
    except APIStatusError as error:
        say(refused=error.message, status=error.status_code, code=error.code, param=error.param)
        good &= error.param == field and error.status_code == 400
broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}
for wrong in [{"model": "no-such-model"}, {"response_format": broken}]:
    try:
        ask(**{"model": models[0], **wrong})
        good = False
    except APIStatusError as error:
        say(refused=error.message, status=error.status_code, code=error.code, param=error.param)
        good &= error.param == next(iter(wrong))
for wrong in [{"model": models[0]}, {"dimensions": 64}]:
    try:
        openai.embeddings.create(**{"model": models[1], "input": "a", **wrong})
        good = False
    except APIStatusError as error:
        say(refused=error.message, status=error.status_code, code=error.code, param=error.param)
        good &= error.param == next(iter(wrong))
sys.exit(0 if good else 1)
