"""The tokenizer and the chat form.

In: texts and turns. Out: token ids with a loss mask, and the ordinary tokenizer files of a model folder.
The template below and `chat_ids` are two spellings of one form; evaluate.py checks that they agree.
"""

import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

VOCAB = 1024
END_OF_TEXT, IM_START, IM_END = 0, 1, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)
SYSTEMS = ["You are a helpful assistant.", "You are Gaterail's demo model.", "You are a helpful AI assistant.", "Answer briefly.",
           "You are a small model. Be honest.", "Be brief and friendly."]


def train_tokenizer(texts) -> Tokenizer:
    """Byte-level BPE with single digits, as the Qwen family has it, at 1,024 entries."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tok.train_from_iterator(texts, trainer)
    return tok


def write_tokenizer(tok: Tokenizer, folder: str):
    os.makedirs(folder, exist_ok=True)
    tok.save(f"{folder}/tokenizer.json")
    special = {str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
               for i, s in enumerate(SPECIAL)}
    config = {"add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": special, "bos_token": None,
              "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "model_max_length": 4096,
              "pad_token": "<|endoftext|>", "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
    write_json(f"{folder}/tokenizer_config.json", config)
    with open(f"{folder}/chat_template.jinja", "w") as f:
        f.write(TEMPLATE)
    write_json(f"{folder}/generation_config.json", {
        "bos_token_id": None, "eos_token_id": [IM_END, END_OF_TEXT], "pad_token_id": END_OF_TEXT, "do_sample": False, "max_new_tokens": 256})


def write_json(path: str, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


class Chat:
    """Turns to ids. Answers carry loss; questions, roles and earlier turns given as history do not."""

    def __init__(self, tok: Tokenizer):
        self.tok, self.cache = tok, {}
        self.user = [IM_START] + self.ids("user\n")
        self.assistant = [IM_START] + self.ids("assistant\n")
        self.system = [IM_START] + self.ids("system\n")
        self.end = [IM_END] + self.ids("\n")

    def ids(self, text: str):
        return self.tok.encode(text, add_special_tokens=False).ids

    def measure(self, sentence: str) -> int:
        """Tokens of a sentence inside a text; remembered, since most sentences come again."""
        n = self.cache.get(sentence)
        if n is None:
            n = len(self.ids(" " + sentence))
            if len(self.cache) < 100_000:
                self.cache[sentence] = n
        return n

    def chat_ids(self, turns, system=None):
        """(ids, answer number or -1 per position): position i is marked when ids[i] is to be predicted."""
        ids, marks = [], []
        if system:
            ids += self.system + self.ids(system) + self.end
            marks += [-1] * len(ids)
        for n, (question, answer) in enumerate(turns):
            head = self.user + self.ids(question) + self.end + self.assistant
            body = self.ids(answer)
            ids += head + body + self.end
            marks += [-1] * len(head) + [n] * (len(body) + 1) + [-1] * (len(self.end) - 1)
        return ids, marks

    def raw_ids(self, turn):
        """The same question and answer without the chat form, for a caller that gives a bare prompt."""
        head, body = self.ids(turn[0]), self.ids(turn[1])
        return head + body + [END_OF_TEXT], [-1] * len(head) + [0] * (len(body) + 1)
