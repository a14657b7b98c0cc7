"""Writes the held-out prompts as JSON lines: {"task", "messages", "answer"}; the answer begins with a space.

    python make_prompts.py TOKENIZER_DIR FILE [COUNT]
"""

import json
import sys

from tokenizers import Tokenizer

from data import SCORED, held_out
from text import Chat

if __name__ == "__main__":
    tokenizer, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100
    chat = Chat(Tokenizer.from_file(f"{tokenizer}/tokenizer.json"))
    with open(path, "w") as f:
        for name in SCORED + ["story"]:
            for turns in held_out(name, count, chat):
                messages = [m for q, a in turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})][:-1]
                f.write(json.dumps({"task": name, "messages": messages, "answer": turns[-1][1]}) + "\n")
