"""Renders the templates of this folder with real Jinja2, as transformers' apply_chat_template does, and records what
comes out in tests/templates/. The Rust renderer must give the same bytes; where Jinja2 fails it must fail too.

    python make_expected.py [OUT]            needs: pip install transformers==5.23.* jinja2==3.1.6
"""

import datetime
import json
import pathlib
import sys

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent
NOW = 1_753_000_000  # 2025-07-20 08:26:40 UTC
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a <place> & \"time\"",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city, e.g. Zürich"},
                "units": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "wind": {"type": ["boolean", "null"], "default": None},
                "scale": {"type": "number", "default": 1.0},
            },
            "required": ["city"],
        },
    },
}
NOTHING = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}}


def call(name, arguments, id="call12345"):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "What is 2 + 2? <b>\"hi\"</b> 🦀"}
HELLO = {"role": "assistant", "content": " Hello! "}
TURNS = [{"role": "user", "content": "Hi "}, HELLO, USER]
SYSTEM = {"role": "system", "content": "Be brief.\nAlways."}
THOUGHT = {"role": "assistant", "content": "<think>\n2 and 2\n</think>\n\nIt is 4."}
REASONED = {"role": "assistant", "reasoning_content": "easy", "content": "4"}
CALL = {"role": "assistant", "content": "", "tool_calls": [call("get_weather", {"city": "Zürich", "days": [1, 2]})]}
RESULT = {"role": "tool", "tool_call_id": "call12345", "content": "{\"temp\": 21.5}"}
TWO = {"role": "assistant", "content": "Both.", "tool_calls": [call("now", {}, "aaaaaaaaa"), call("now", {"x": "é"}, "bbbbbbbbb")]}

CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": TURNS,
    "system_turns": [SYSTEM, *TURNS],
    "answered": [SYSTEM, USER, {"role": "assistant", "content": "It is 4."}],
    "thought": [USER, THOUGHT, USER, THOUGHT],
    "reasoned": [USER, REASONED, USER, REASONED],
    "call": [USER, CALL],
    "call_result": [SYSTEM, USER, CALL, RESULT],
    "call_answer": [USER, CALL, RESULT, {"role": "assistant", "content": "21.5 degrees."}, USER],
    "two_calls": [USER, TWO, RESULT, RESULT],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "at"}]}],
    "wrong_order": [HELLO, USER],
    "odd": [{"role": "user", "content": "a"}, {"role": "narrator", "content": None}],
    "empty": [],
}
TOOLS = [WEATHER, NOTHING]
LANGUAGE = {
    "xs": [3, 1, 2],
    "d": {"b": 1, "a": None, "x": "é\n'", "nested": {"k": [1.5, True]}},
    "people": [{"name": "Al", "age": 31}, {"name": "Bo", "age": 0}, {"name": "Cy", "age": 47}],
}


def options():
    """The ways in which every conversation is asked for: its name and what differs from a plain rendering."""
    for name in CONVERSATIONS:
        yield name, {"add_generation_prompt": True}
    for name in ["one", "answered", "system_turns"]:
        yield name, {}
    for name in ["one", "system", "call_result", "call_answer"]:
        yield name, {"tools": TOOLS, "add_generation_prompt": True}
    yield "one", {"add_generation_prompt": True, "extra": {"enable_thinking": False, "reasoning_effort": "high", "date_string": "1 May"}}
    yield "answered", {"continue_final_message": True}
    yield "turns", {"extra": {"bos_token": "<B>"}}
    yield "parts", {"continue_final_message": True}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def expected(template, special, messages, option):
    """What transformers renders, or None where it raises."""
    chat_template_utils.datetime = Clock
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            tools=option.get("tools"),
            documents=option.get("documents"),
            add_generation_prompt=option.get("add_generation_prompt", False),
            continue_final_message=option.get("continue_final_message", False),
            **{**special, **option.get("extra", {})},
        )
        return rendered[0]
    except Exception:
        return None


def record(template, special=SPECIAL, cases=None):
    """The recorded file of one template."""
    cases = list(options()) if cases is None else cases
    listed = []
    for name, option in cases:
        entry = {"conversation": name, **option}
        if option.get("tools") is not None:
            entry["tools"] = "tools"
        listed.append({**entry, "now": NOW, "expected": expected(template, special, CONVERSATIONS[name], option)})
    return {"special": special, "template": template, "cases": listed}


CASES = {"whitespace": [("one", {}), ("empty", {"extra": LANGUAGE})]}


def snippets(text):
    """Every line of the text as a template of its own."""
    option = {"extra": LANGUAGE}
    lines = [line for line in text.splitlines() if not line.startswith("{#")]
    rendered = [{"template": line, "now": NOW, "expected": expected(line, SPECIAL, [], option)} for line in lines]
    return {"special": SPECIAL, "extra": LANGUAGE, "cases": rendered}


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(HERE.glob("*.jinja")):
        text = path.read_text(encoding="utf-8")
        recorded = snippets(text) if path.stem == "language" else record(text, cases=CASES.get(path.stem))
        (out / f"{path.stem}.json").write_text(json.dumps(recorded, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        failed = sum(case["expected"] is None for case in recorded["cases"])
        print(f"{path.name}: {len(recorded['cases'])} cases, {failed} of them refused by the template")
    shared = {"conversations": CONVERSATIONS, "tools": TOOLS}
    (out / "conversations.json").write_text(json.dumps(shared, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[2] / "tests" / "templates")
