"""Speaks to a Gaterail server through OpenAI's own Python package, unmodified, as a user's program would.

    python openai_client.py http://127.0.0.1:8000/v1 KEY

Prints one line for every check and ends with status 1 at the first that fails. The server has to run the demo model.
"""

import sys
import time

import openai

BASE, KEY = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=120)
QUESTION = [{"role": "user", "content": "What is 27 + 58?"}]
MODEL = client.models.list().data[0].id


def check(name, holds, seen=None):
    if not holds:
        sys.exit(f"FAILED {name}: {seen!r}")
    print("ok", name)


def refused(name, kind, status, fragment, code=None, param=None, **fields):
    """The request is refused with this exception, status and words."""
    call = {"model": MODEL, "messages": QUESTION, "max_tokens": 4, **fields}
    try:
        client.chat.completions.create(**call)
    except kind as error:
        body = error.body or {}
        fits = error.status_code == status and fragment in error.message
        fits = fits and body.get("code") == code and (param is None or body.get("param") == param)
        check(name, fits, (error.status_code, error.body))
        check(name + ": request id", bool(error.request_id))
        return
    sys.exit(f"FAILED {name}: it was accepted")


def models():
    page = client.models.list()
    check("models", page.object == "list" and page.data[0].max_model_len == 4096, page)
    check("model by id", client.models.retrieve(MODEL).id == MODEL)
    try:
        client.models.retrieve("no/such")
        sys.exit("FAILED unknown model: it was found")
    except openai.NotFoundError as error:
        check("unknown model", error.body["code"] == "model_not_found" and MODEL in error.message, error.body)


def chat():
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    message = whole.choices[0].message
    check("chat answers", message.content.strip() == "85" and message.role == "assistant", whole)
    check("chat ends", whole.choices[0].finish_reason == "stop", whole)
    usage = whole.usage
    check("usage adds up", usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0, usage)
    check("request id", whole._request_id.startswith("req-"), whole._request_id)
    own = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1, extra_headers={"X-Request-Id": "mine-1"}
    )
    check("own request id", own._request_id == "mine-1", own._request_id)
    return message.content


def chat_stream(expected):
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    first, last = chunks[0], chunks[-1]
    check("role comes once", [c.choices[0].delta.role for c in chunks[:-1]].count("assistant") == 1 and first.choices[0].delta.role == "assistant", chunks)
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    check("stream is the whole", text == expected, (text, expected))
    check("last delta is empty", chunks[-2].choices[0].finish_reason == "stop" and chunks[-2].choices[0].delta.content is None, chunks[-2])
    check("usage chunk", last.choices == [] and last.usage.completion_tokens > 0, last)
    check("others have none", all(c.usage is None for c in chunks[:-1]))
    check("one id", len({(c.id, c.model, c.created) for c in chunks}) == 1)
    with client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, max_tokens=200, extra_body={"ignore_eos": True}) as early:
        for _ in early:
            break
    check("a stream may be left", True)
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as helper:
        for _ in helper:
            pass
        check("the package's own accumulator", helper.get_final_completion().choices[0].message.content == expected)


def choices():
    ask = dict(model=MODEL, messages=[{"role": "user", "content": "Tell me a story."}], temperature=1.0, max_tokens=12, n=3)
    one = client.chat.completions.create(seed=11, **ask)
    two = client.chat.completions.create(seed=11, **ask)
    other = client.chat.completions.create(seed=12, **ask)
    texts = lambda answer: [choice.message.content for choice in answer.choices]
    check("n", [choice.index for choice in one.choices] == [0, 1, 2], one)
    check("a seed decides", texts(one) == texts(two), (texts(one), texts(two)))
    check("another seed decides otherwise", texts(one) != texts(other), texts(one))
    check("choices differ", len(set(texts(one))) > 1, texts(one))
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(seed=11, stream=True, **ask):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    check("n streams", streamed == texts(one), (streamed, texts(one)))


def logprobs():
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    check("logprobs for every token", len(content) == answer.usage.completion_tokens, answer)
    for entry in content:
        best = entry.top_logprobs
        check("three others", len(best) == 3 and best[0].token == entry.token and best[0].logprob == entry.logprob, entry)
        check("bytes are the token", bytes(entry.bytes).decode(errors="replace") == entry.token, entry)
        check("order", best[0].logprob >= best[1].logprob >= best[2].logprob, entry)
    ids = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1, logprobs=True, extra_body={"return_tokens_as_token_ids": True}
    )
    check("tokens as ids", ids.choices[0].logprobs.content[0].token.startswith("token_id:"), ids)


def completions():
    prompt = "<|im_start|>user\nWhat is 27 + 58?<|im_end|>\n<|im_start|>assistant\n"
    answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0)
    check("completion", answer.choices[0].text.strip() == "85", answer)
    several = client.completions.create(model=MODEL, prompt=[prompt, "once upon", "a"], max_tokens=5, temperature=0, n=2)
    check("prompts and choices", [c.index for c in several.choices] == list(range(6)), several)
    check("choices of a greedy prompt are one", several.choices[0].text == several.choices[1].text)
    ids = client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=5, temperature=0)
    lists = client.completions.create(model=MODEL, prompt=[[5, 6, 7], [8, 9]], max_tokens=5, temperature=0)
    check("ids", lists.choices[0].text == ids.choices[0].text, (lists, ids))
    echo = client.completions.create(model=MODEL, prompt="once upon a time", max_tokens=3, temperature=0, echo=True, logprobs=2)
    logprobs = echo.choices[0].logprobs
    check("echo", echo.choices[0].text.startswith("once upon a time"), echo)
    count = echo.usage.total_tokens
    lengths = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)}
    check("four lists of one length", lengths == {count}, (lengths, count))
    check("the first has no probability", logprobs.token_logprobs[0] is None and logprobs.token_logprobs[1] < 0, logprobs)
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        check("offset", echo.choices[0].text[offset:offset + len(token)] == token or token.startswith("<|"), (token, offset))
    score = client.completions.create(model=MODEL, prompt="once upon a time", max_tokens=0, echo=True, logprobs=1)
    check("scoring alone", score.usage.completion_tokens == 0 and score.choices[0].text == "once upon a time", score)
    check("scores are the same", score.choices[0].logprobs.token_logprobs == logprobs.token_logprobs[:len(score.choices[0].logprobs.tokens)], score)
    parts = list(client.completions.create(model=MODEL, prompt=prompt, temperature=0, stream=True, echo=True))
    check("stream with echo", "".join(p.choices[0].text for p in parts) == prompt.replace("<|im_start|>", "<|im_start|>") + answer.choices[0].text, parts)


def stops():
    ask = dict(model=MODEL, messages=[{"role": "user", "content": "Tell me a story."}], temperature=0, max_tokens=24)
    whole = client.chat.completions.create(extra_body={"ignore_eos": True}, **ask).choices[0].message.content
    stop = whole[5:9]
    cut = client.chat.completions.create(stop=[stop, "never in it"], extra_body={"ignore_eos": True}, **ask).choices[0]
    check("stop", cut.message.content == whole[: whole.find(stop)] and cut.finish_reason == "stop", (cut, whole, stop))
    check("stop reason", cut.stop_reason == stop, cut)
    shown = client.chat.completions.create(stop=stop, extra_body={"ignore_eos": True, "include_stop_str_in_output": True}, **ask)
    check("stop is shown", shown.choices[0].message.content == whole[: whole.find(stop) + len(stop)], shown)
    short = client.chat.completions.create(**{**ask, "max_tokens": 2}).choices[0]
    check("length", short.finish_reason == "length", short)
    banned = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=1, logprobs=True, extra_body={"return_tokens_as_token_ids": True})
    token = banned.choices[0].logprobs.content[0].token.removeprefix("token_id:")
    other = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=1, logprobs=True, logit_bias={token: -100}, extra_body={"return_tokens_as_token_ids": True})
    check("logit_bias", other.choices[0].logprobs.content[0].token != f"token_id:{token}", other)


def errors():
    bad = openai.BadRequestError
    refused("no such model", openai.NotFoundError, 404, "does not exist", code="model_not_found", param="model", model="nobody")
    refused("temperature", bad, 400, "temperature is 3; it has to be 0 to 2", param="temperature", temperature=3)
    refused("n", bad, 400, "from 1 to 16", param="n", n=1000)
    refused("no messages", bad, 400, "messages is empty", param="messages", messages=[])
    refused("tools", bad, 400, "tools is not supported", param="tools", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    refused("json", bad, 400, "response_format is not supported", param="response_format", response_format={"type": "json_object"})
    long = [{"role": "user", "content": "word " * 5000}]
    refused("too long", bad, 400, "context is 4096 tokens", code="context_length_exceeded", messages=long)
    refused("too much", bad, 400, "context is 4096 tokens", code="context_length_exceeded", max_tokens=5000)
    if KEY != "none":
        stranger = client.with_options(api_key="wrong")
        try:
            stranger.models.list()
            sys.exit("FAILED wrong key: it opens")
        except openai.AuthenticationError as error:
            check("wrong key", error.status_code == 401 and error.body["code"] == "invalid_api_key", error.body)


def timeouts():
    slow = client.with_options(timeout=0.001, max_retries=1)
    began = time.monotonic()
    try:
        slow.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=500, extra_body={"ignore_eos": True})
        sys.exit("FAILED timeout: it was in time")
    except openai.APITimeoutError:
        check("timeout, with a retry", time.monotonic() - began < 60)
    check("the server goes on", client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0).choices[0].message.content.strip() == "85")


models()
expected = chat()
chat_stream(expected)
choices()
logprobs()
completions()
stops()
errors()
timeouts()
print("all is well")
