"""Tokenizers in GGUF files, and the ids that the same tokenizers give as tokenizer.json.

The reference is built with transformers' and tokenizers' own classes and trained on a few sentences;
then its parts are written with the gguf package the way llama.cpp's converter does: tokens by id, their
types, merges or scores. Nothing of tokenizer.json goes into the file.
"""

import json
from pathlib import Path

import gguf
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

TEXTS = [
    "Hello world! Hello, wörld?",
    "The year 2024, 12345678 and 3.14159; it's they'll I'VE we're",
    "   leading,  double   triple    and trailing   ",
    "tabs\tand\nnew lines\n\n\r\n  indented\n    more",
    "naïve café, cafe\u0301, Ångström A\u030angstro\u0308m",
    "日本語のテキスト、中文文本 и русский текст",
    "emoji 🦀🎉 👩‍👩‍👧 flags 🇩🇪 and \u200b zero width",
    "def f(x):\n        return x ** 2  # comment",
    "<|user|>Hi there<|end|> <|user|> again<tool>\n<|end|>",
    "<|user|>\u00e9<|user|>  two spaces",
    "a", "", " ", "\n", "'s", "🦀",
]
WORDS = " ".join(TEXTS) * 3 + " the quick brown fox jumps over the lazy dog " * 4
SPECIAL, USER = ["<|user|>", "<|end|>"], ["<tool>", "    "]
TEMPLATE = ("{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}{{ bos_token }}{% endif %}")


def byte_level(words=None, composed=False, whole_words=False, vocab_size=420):
    t = Tokenizer(models.BPE(ignore_merges=whole_words))
    if composed:
        t.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    if words:
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(words), behavior="isolated", invert=False), level])
    else:
        t.pre_tokenizer = level
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator([WORDS], trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(alphabet), show_progress=False))
    add_tokens(t)
    return t


def add_tokens(t):
    t.add_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    t.add_tokens([AddedToken(text, special=False, normalized=False) for text in USER])


def begin_with(t, token):
    t.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, t.token_to_id(token))])


def sentence_piece(prefix=True):
    """As Llama 2's tokenizer.json: scores become merges, spaces become ▁, unknown characters bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+|▁+"), behavior="isolated")
    trained.train_from_iterator([WORDS.replace("🦀", "")], trainers.BpeTrainer(vocab_size=330, show_progress=False))
    merged = json.loads(trained.to_str())["model"]
    pieces = [left + right for left, right in merged["merges"]]
    singles = [piece for piece in merged["vocab"] if piece not in pieces and piece not in "語🎉文"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + list(dict.fromkeys(pieces)) + singles
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    vocab = {token: i for i, token in enumerate(tokens)}
    # Control and byte tokens are not made of text.
    merges = generate_merges(vocab, dict(zip(tokens, scores)), skip_tokens=tokens[:259])
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marks = [normalizers.Prepend("▁")] if prefix else []
    t.normalizer = normalizers.Sequence(marks + [normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + strip)
    t.add_special_tokens([AddedToken(text, normalized=False) for text in tokens[:3]])
    t.add_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    t.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    begin_with(t, "<s>")
    return t, scores


def write(path, t, pre, scores=None, begin=None, rows=3, prefix=True):
    """The tokenizer as the converter writes it, with rows of the embedding that belong to no token."""
    w = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    add(w, t, pre, scores, begin, rows)
    if not prefix:
        w.add_add_space_prefix(False)
    w.add_chat_template(TEMPLATE)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file(progress=False)
    w.close()


def add(w, t, pre, scores, begin, rows):
    by_id = {i: token for token, i in t.get_vocab(with_added_tokens=True).items()}
    added = t.get_added_tokens_decoder()
    tokens, kinds = [], []
    for i in range(len(by_id)):
        text = by_id[i]
        kind = TokenType.NORMAL
        if i in added:
            kind = TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
        if scores and i < 259:
            kind = TokenType.UNKNOWN if i == 0 else TokenType.CONTROL if i < 3 else TokenType.BYTE
        tokens.append(text)
        kinds.append(kind)
    for i in range(rows):
        tokens.append(f"[PAD{len(tokens)}]")
        kinds.append(TokenType.UNUSED)
    w.add_tokenizer_model("llama" if scores else "gpt2")
    if not scores:
        w.add_tokenizer_pre(pre)
        merges = json.loads(t.to_str())["model"]["merges"]
        w.add_token_merges([" ".join(pair) for pair in merges])
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    if scores:
        w.add_token_scores(scores + [-1000.0] * (len(tokens) - len(scores)))
        w.add_unk_token_id(0)
    eos = t.token_to_id("</s>") if scores else t.token_to_id("<|end|>")
    w.add_bos_token_id(t.token_to_id(begin) if begin else eos)
    w.add_eos_token_id(eos)
    if not begin:
        w.add_add_bos_token(False)


def add_small_tokenizer(w, vocab_size):
    """For a model fixture that is to be spoken to."""
    t = byte_level(composed=True, vocab_size=vocab_size - 10)
    add(w, t, "olmo", None, None, vocab_size - t.get_vocab_size())
    w.add_chat_template(TEMPLATE)


def make_all(out):
    out.mkdir(parents=True, exist_ok=True)
    llama3 = TikTokenConverter(vocab_file=None).pattern
    spm, scores = sentence_piece()
    bare, _ = sentence_piece(prefix=False)
    llama = byte_level(llama3, whole_words=True)
    begin_with(llama, "<|user|>")
    table = [
        ("gpt2", byte_level(), "gpt-2", None, None),
        ("olmo", byte_level(composed=True), "olmo", None, None),
        ("qwen2", byte_level(PRETOKENIZE_REGEX, composed=True), "qwen2", None, None),
        ("llama_bpe", llama, "llama-bpe", None, "<|user|>"),
        ("llama_spm", spm, None, scores, "<s>"),
        ("llama_spm_bare", bare, None, scores, "<s>"),
    ]
    for name, t, pre, scores, begin in table:
        write(out / f"{name}.gguf", t, pre, scores, begin, prefix=t is not bare)
        cases = []
        for text in TEXTS:
            ids = t.encode(text, add_special_tokens=True).ids
            cases.append({"text": text, "ids": ids, "plain": t.encode(text, add_special_tokens=False).ids,
                          "decoded": t.decode(ids, skip_special_tokens=False),
                          "shown": t.decode(ids, skip_special_tokens=True)})
        (out / f"{name}.json").write_text(json.dumps(cases, indent=0, ensure_ascii=False) + "\n")
        print(f"{name}: {t.get_vocab_size()} tokens, {(out / f'{name}.gguf').stat().st_size} bytes")


if __name__ == "__main__":
    make_all(Path(__file__).resolve().parent / "../../tests/tokenizers")
