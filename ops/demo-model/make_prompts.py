"""Writes held-out prompts as JSON lines, for `gaterail evaluate`: {"task", "messages", "answer"}; the answer begins with a space.

A line with "free": true has no one right answer. `prompts.jsonl` beside this file is what this writes without COUNT and SEED.

    python make_prompts.py TOKENIZER_DIR FILE [COUNT] [SEED]
"""

import json
import sys

from tokenizers import Tokenizer

from data import SCORED, held_out
from text import Chat

if __name__ == "__main__":
    tokenizer, path = sys.argv[1:3]
    count, seed = (int(given) for given in (sys.argv[3:] + ["20", "11"][len(sys.argv) - 3 :]))
    chat = Chat(Tokenizer.from_file(f"{tokenizer}/tokenizer.json"))
    with open(path, "w") as f:
        for name in SCORED + ["story"]:
            for turns in held_out(name, count, chat, seed):
                messages = [m for q, a in turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})][:-1]
                free = {"free": True} if name == "story" else {}
                f.write(json.dumps({"task": name, "messages": messages, "answer": turns[-1][1], **free}) + "\n")
