#!/usr/bin/env python3
"""Writes golden.json: the templates here, rendered by Jinja2 the way transformers does it (`pip install jinja2`).

smollm2.jinja and qwen2.5.jinja come from those models' GGUF files (Apache-2.0); the others are written after the
published templates of their families.
"""

import json
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).resolve().parent


class Generation(Extension):
    """`{% generation %}` groups, and does nothing else."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception

def m(role, content):
    return {"role": role, "content": content}


TALKS = {
    "one": [m("user", "Hi there!")],
    "system": [m("system", "Be brief."), m("user", "What is 2 + 2?")],
    "turns": [m("system", "  Be kind. \n"), m("user", " one \n"), m("assistant", "\ntwo\n"), m("user", "three <b>&\"'</b> \u00e9 \U0001f600")],
    "no system": [m("user", "a"), m("assistant", "b"), m("user", "c")],
    "thinking": [m("user", "<skip>me"), m("assistant", "<think>\nhm\n</think>\n\nanswer"), m("user", "banana ")],
    "two users": [m("user", "a"), m("user", "b")],
    "tool": [m("user", "weather?"), m("assistant", "calling"), m("tool", "{\"t\": 20}")],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather's state, <now>.", "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Z\u00fcrich", "Bern"]}, "days": {"type": "integer"}}, "required": ["city"]}}}]

TEMPLATES = {
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "qwen2.5": ("", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "llama3_tools": ("<|begin_of_text|>", "<|eot_id|>"),
    "gemma3": ("<bos>", "<eos>"),
    "gemma4": ("<bos>", "<turn|>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "mistral": ("<s>", "</s>"),
    "python_isms": ("<s>", "</s>"),
}

if __name__ == "__main__":
    cases = []
    for name, (bos, eos) in TEMPLATES.items():
        template = ENV.from_string((HERE / f"{name}.jinja").read_text())
        for talk, messages in TALKS.items():
            for prompt in (True, False):
                for extra in ({}, {"tools": TOOLS}):
                    if extra and name not in ("qwen2.5", "llama3_tools", "mistral"):
                        continue
                    given = dict(extra)
                    if name == "llama3_tools":
                        given["date_string"] = "01 Jan 2025"
                    case = {"template": name, "bos": bos, "eos": eos, "talk": talk, "messages": messages, "add_generation_prompt": prompt, "extra": given}
                    try:
                        variables = {"tools": None, "documents": None, "bos_token": bos, "eos_token": eos, **given}
                        case["text"] = template.render(messages=messages, add_generation_prompt=prompt, **variables)
                    except jinja2.exceptions.TemplateError as e:
                        case["error"] = str(e)
                    cases.append(case)
    text = json.dumps({"reference": f"jinja2 {jinja2.__version__}", "cases": cases}, ensure_ascii=True)
    (HERE / "golden.json").write_text(text.replace('{"template"', '\n{"template"') + "\n")
