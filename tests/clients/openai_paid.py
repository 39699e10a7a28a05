"""A program written for OpenAI: the official Python SDK, whose transport is the official x402 client, paying by `exact`.

    python openai_paid.py BASE_URL PRIVATE_KEY RPC_URL

Prints one JSON line a step: {models}, {plain}, {streamed, tokens}, {call}, {parsed}, {vectors}, {refused, status, param}.
Exits with 1 if any step was not what an OpenAI program expects.
"""

import asyncio
import json
import sys
from typing import Literal

from eth_account import Account
from openai import APIStatusError, AsyncOpenAI
from pydantic import BaseModel
from x402 import x402Client
from x402.http.clients import x402HttpxClient
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC


class Verdict(BaseModel):
    mood: Literal["good", "bad"]
    sure: bool


def say(**line):
    print(json.dumps(line), flush=True)


async def main(base_url, key, rpc_url):
    client = x402Client()
    # The client refuses tokens that it does not know until it is told.
    client.set_spend_controls(False)
    register_exact_evm_client(client, EthAccountSignerWithRPC(Account.from_key(key), rpc_url))
    good = True
    async with x402HttpxClient(client) as http:
        openai = AsyncOpenAI(base_url=base_url, api_key="unused", http_client=http)
        models = [model.id async for model in openai.models.list()]
        say(models=models)
        hello = [{"role": "user", "content": "Say hello."}]
        plain = await openai.chat.completions.create(model=models[0], messages=hello, max_tokens=12)
        say(plain=plain.choices[0].message.content, tokens=plain.usage.total_tokens)
        good &= bool(plain.choices[0].message.content)

        streamed, usage = "", None
        options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 12, "seed": 3}
        async for chunk in await openai.chat.completions.create(model=models[0], messages=hello, **options):
            streamed += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage = chunk.usage or usage
        say(streamed=streamed, tokens=usage.completion_tokens)
        good &= bool(streamed) and 1 <= usage.completion_tokens <= 12

        city = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
        tools = [{"type": "function", "function": {"name": "weather", "parameters": city}}]
        called = await openai.chat.completions.create(
            model=models[0], messages=hello, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=60
        )
        call = called.choices[0].message.tool_calls[0].function
        say(call={"name": call.name, "arguments": call.arguments})
        good &= call.name == "weather" and "city" in json.loads(call.arguments)

        mood = [{"role": "user", "content": "What is the mood of: I like rain?"}]
        verdict = await openai.chat.completions.parse(
            model=models[0], messages=mood, response_format=Verdict, max_tokens=40
        )
        say(parsed=verdict.choices[0].message.parsed.model_dump())

        vectors = await openai.embeddings.create(model=models[1], input=["How do I bake bread?", "The ocean is deep."])
        say(vectors=[len(item.embedding) for item in vectors.data])
        good &= [len(item.embedding) for item in vectors.data] == [384, 384]

        for wrong in [{"model": "no-such-model"}, {"n": 2}]:
            try:
                await openai.chat.completions.create(**{"model": models[0], "messages": hello, **wrong})
                good = False
            except APIStatusError as error:
                say(refused=error.message, status=error.status_code, param=error.param)
                good &= error.param == next(iter(wrong))
    return good


sys.exit(0 if asyncio.run(main(*sys.argv[1:4])) else 1)
