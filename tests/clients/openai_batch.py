"""A program that has work for the night: OpenAI's Batch API by the official Python SDK, unmodified.

    python openai_batch.py BASE_URL begin LINES     a batch of so many chats: {batch, file}
    python openai_batch.py BASE_URL counts BATCH    how far it is: {status, completed, total}
    python openai_batch.py BASE_URL collect BATCH   waits for its end, fetches the output twice: {answers, first, usage}
    python openai_batch.py BASE_URL rest            vectors, cancelling, lists, deleting, refusals: a line each

One JSON line a step. Exits with 1 if any step was not what an OpenAI program expects.
"""

import json
import sys
import time

from openai import APIStatusError, OpenAI

openai = OpenAI(base_url=sys.argv[1], api_key="unused")
good = True


def say(**line):
    print(json.dumps(line), flush=True)


def chat(model, number, **more):
    messages = [{"role": "user", "content": f"Say a number other than {number}."}]
    body = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0, **more}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(lines):
    content = "\n".join(json.dumps(line) for line in lines).encode()
    return openai.files.create(purpose="batch", file=("night.jsonl", content))


def create(file, endpoint="/v1/chat/completions", **more):
    return openai.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def ended(name):
    while True:
        batch = openai.batches.retrieve(name)
        if batch.status not in ("validating", "in_progress", "cancelling", "finalizing"):
            return batch
        time.sleep(0.2)


def refused(param, status, call):
    global good
    try:
        call()
        good = False
        say(taken=param)
    except APIStatusError as error:
        say(refused=error.message, status=error.status_code, code=error.code, param=error.param)
        good &= error.status_code == status and error.param == param


models = [model.id for model in openai.models.list().data]
step = sys.argv[2]
if step == "begin":
    file = upload([chat(models[0], number) for number in range(int(sys.argv[3]))])
    about = openai.files.retrieve(file.id)
    batch = create(file, metadata={"night": "1"})
    good &= about.purpose == "batch" and about.filename == "night.jsonl" and batch.metadata == {"night": "1"}
    say(batch=batch.id, file=file.id)
elif step == "counts":
    batch = openai.batches.retrieve(sys.argv[3])
    say(status=batch.status, completed=batch.request_counts.completed, total=batch.request_counts.total)
elif step == "collect":
    batch = ended(sys.argv[3])
    lines = [json.loads(line) for line in openai.files.content(batch.output_file_id).text.splitlines()]
    again = [json.loads(line) for line in openai.files.content(batch.output_file_id).text.splitlines()]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
    good &= batch.status == "completed" and batch.request_counts.completed == batch.request_counts.total == len(lines)
    good &= [line["custom_id"] for line in lines] == [f"line-{number}" for number in range(len(lines))]
    good &= all(texts) and lines == again and all(line["error"] is None for line in lines)
    spent = sum(line["response"]["body"]["usage"]["completion_tokens"] for line in lines)
    good &= spent == batch.usage.output_tokens
    say(answers=len(lines), first=texts[0], usage=spent)
elif step == "rest":
    vector = lambda number: {"custom_id": f"v{number}", "method": "POST", "url": "/v1/embeddings",
                             "body": {"model": models[1], "input": f"text {number}"}}
    batch = ended(create(upload([vector(1), vector(2)]), "/v1/embeddings").id)
    lines = [json.loads(line) for line in openai.files.content(batch.output_file_id).text.splitlines()]
    good &= [len(line["response"]["body"]["data"][0]["embedding"]) for line in lines] == [384, 384]
    say(vectors=len(lines))
    # One payment for all of it, whatever a token costs just now.
    file = upload([chat(models[0], number, max_tokens=100) for number in range(20)])
    batch = openai.batches.cancel(create(file).id)
    good &= batch.status in ("cancelling", "cancelled")
    batch = ended(batch.id)
    errors = openai.files.content(batch.error_file_id).text.splitlines()
    counts = batch.request_counts
    good &= batch.status == "cancelled" and len(errors) == counts.failed and counts.failed + counts.completed == 20
    say(cancelled=batch.id, answered=counts.completed)
    good &= batch.id in [one.id for one in openai.batches.list(limit=2)]
    good &= file.id in [one.id for one in openai.files.list()]
    good &= openai.files.delete(file.id).deleted
    good &= file.id not in [one.id for one in openai.files.list()]
    say(deleted=file.id)
    refused("purpose", 400, lambda: openai.files.create(purpose="vision", file=("a", b"{}")))
    refused("line 2: body.n", 400, lambda: upload([chat(models[0], 1), chat(models[0], 2, n=2)]))
    refused("input_file_id", 404, lambda: create(file))
    refused("output_expires_after", 400,
            lambda: create(file, output_expires_after={"anchor": "created_at", "seconds": 3600}))
sys.exit(0 if good else 1)
