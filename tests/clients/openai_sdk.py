"""A program written for OpenAI: the official Python SDK, unmodified, with nothing changed but its base URL.

    python openai_sdk.py BASE_URL

Prints one JSON line a step: {models}, {plain}, {streamed, chunks}, {left}, {refused, status, code}. The fourth leaves a
stream after its first piece. Exits with 1 if any step was not what an OpenAI program expects.
"""

import json
import sys

from openai import APIStatusError, OpenAI

openai = OpenAI(base_url=sys.argv[1], api_key="unused")


def say(**line):
    print(json.dumps(line), flush=True)


def ask(model, content="Say hello.", **more):
    messages = [{"role": "user", "content": content}]
    return openai.chat.completions.create(model=model, messages=messages, max_tokens=12, **more)


def text_of(chunk):
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


good = True
models = [model.id for model in openai.models.list().data]
say(models=models)
plain = ask(models[0])
say(plain=plain.choices[0].message.content, finish=plain.choices[0].finish_reason, tokens=plain.usage.total_tokens)
good &= bool(plain.choices[0].message.content)
streamed, chunks = "", 0
for chunk in ask(models[0], stream=True, seed=3):
    streamed += text_of(chunk)
    chunks += 1
say(streamed=streamed, chunks=chunks)
good &= bool(streamed) and chunks >= 2
with ask(models[0], "Count to ten.", stream=True) as stream:
    left = next(text for text in map(text_of, stream) if text)
say(left=left)
try:
    ask("no-such-model")
    good = False
except APIStatusError as error:
    say(refused=error.message, status=error.status_code, code=error.code)
sys.exit(0 if good else 1)
