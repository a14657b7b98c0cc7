"""Speaks to a Gaterail server through Google's own gRPC package, with messages that reflection describes.

    python grpc_client.py 127.0.0.1:8001 KEY

Prints one line for every check and ends with status 1 at the first that fails. The server has to run the demo model.
"""

import sys
import time

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

ADDRESS, KEY = sys.argv[1], sys.argv[2]
channel = grpc.insecure_channel(ADDRESS)
metadata = (("authorization", f"Bearer {KEY}"),)


def check(name, holds, seen=None):
    if not holds:
        sys.exit(f"FAILED {name}: {seen!r}")
    print("ok", name)


def fails(name, call, code, fragment=""):
    try:
        result = call()
        if hasattr(result, "__iter__"):
            result = list(result)
    except grpc.RpcError as error:
        check(name, error.code() == code and fragment in error.details(), (error.code(), error.details()))
        return error
    sys.exit(f"FAILED {name}: it was accepted: {result!r}")


class WithKey(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Reflection's own client sends no metadata."""

    def intercept_unary_unary(self, go_on, details, request):
        return go_on(details._replace(metadata=metadata), request)

    def intercept_stream_stream(self, go_on, details, requests):
        return go_on(details._replace(metadata=metadata), requests)


database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, WithKey()))
check("services", {"gaterail.v1.Inference", "grpc.health.v1.Health"} <= set(database.get_services()), list(database.get_services()))
pool = DescriptorPool(database)
service = pool.FindServiceByName("gaterail.v1.Inference")
message = lambda name: GetMessageClass(pool.FindMessageTypeByName(f"gaterail.v1.{name}"))


def method(name):
    found = service.methods_by_name[name]
    kind = channel.unary_stream if found.server_streaming else channel.unary_unary
    call = kind(
        f"/gaterail.v1.Inference/{name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=GetMessageClass(found.output_type).FromString,
    )
    return lambda request, **options: call(request, metadata=options.pop("metadata", metadata), **options)


generate, tokenize, info = method("Generate"), method("Tokenize"), method("ModelInfo")
GenerateRequest, Chat, Message, TokenIds = message("GenerateRequest"), message("Chat"), message("Message"), message("TokenIds")
question = Chat(messages=[Message(role="user", content="What is 27 + 58?")])

model = info(message("ModelInfoRequest")())
check("model", model.context == 4096 and model.vocabulary == 1024 and model.parameters > 7_000_000, model)
tokens = tokenize(message("TokenizeRequest")(chat=question))
check("tokens", len(tokens.ids) > 10 and tokens.context == 4096, tokens)

request = GenerateRequest(chat=question, logprobs=2)
request.sampling.temperature = 0
events = list(generate(request, timeout=120))
kinds = [event.WhichOneof("event") for event in events]
check("order", kinds[0] == "started" and kinds[-1] == "finished" and set(kinds[1:-1]) == {"token"}, kinds)
check("answer", "".join(event.token.text for event in events if event.HasField("token")).strip() == "85", events)
check("prompt", events[0].started.prompt_tokens == len(tokens.ids), events[0])
check("logprobs", all(len(event.token.top) == 2 and event.token.logprob <= 0 for event in events[1:-1]), events)
check("end", events[-1].finished.reason == 1 and events[-1].finished.completion_tokens == kinds.count("token"), events[-1])

same = GenerateRequest(tokens=TokenIds(ids=tokens.ids), n=2, max_tokens=3)
same.sampling.temperature = 0
events = list(generate(same, timeout=120))
check("two choices", sorted(e.finished.index for e in events if e.HasField("finished")) == [0, 1], events)
check("from the cache", events[0].started.prompt_tokens == len(tokens.ids), events[0])

fails("no prompt", lambda: generate(GenerateRequest()), grpc.StatusCode.INVALID_ARGUMENT, "prompt is missing")
fails("unknown token", lambda: generate(GenerateRequest(tokens=TokenIds(ids=[99999]))), grpc.StatusCode.INVALID_ARGUMENT, "vocabulary")
fails("no such model", lambda: generate(GenerateRequest(model="nobody", text="a")), grpc.StatusCode.NOT_FOUND, "does not exist")
error = fails("too long", lambda: generate(GenerateRequest(text="word " * 5000)), grpc.StatusCode.INVALID_ARGUMENT, "4096")
check("reason", dict(error.trailing_metadata() or ()).get("reason") == "context_length_exceeded", error.trailing_metadata())
hot = GenerateRequest(text="a")
hot.sampling.temperature = float("nan")
fails("NaN", lambda: generate(hot), grpc.StatusCode.INVALID_ARGUMENT, "temperature")
raw = channel.unary_stream("/gaterail.v1.Inference/Generate")
fails("no protobuf", lambda: list(raw(b"\xff\xff\xff\xff\x0f", metadata=metadata)), grpc.StatusCode.INTERNAL)
raw = channel.unary_unary("/gaterail.v1.Inference/Nothing")
fails("no such method", lambda: raw(b"", metadata=metadata), grpc.StatusCode.UNIMPLEMENTED)

# So much that no machine says all of it in that time, and each has begun before.
endless = GenerateRequest(text="once", ignore_eos=True, max_tokens=3000, n=16, logprobs=20)
began = time.monotonic()
fails("deadline", lambda: list(generate(endless, timeout=1)), grpc.StatusCode.DEADLINE_EXCEEDED)
check("in time", time.monotonic() - began < 60, time.monotonic() - began)
left = generate(endless)
next(left)
left.cancel()
check("cancelled", True)

stub = health_pb2_grpc.HealthStub(channel)
for name in ["", "gaterail.v1.Inference", f"model/{model.names[0]}"]:
    answer = stub.Check(health_pb2.HealthCheckRequest(service=name), metadata=metadata)
    check(f"health of {name!r}", answer.status == health_pb2.HealthCheckResponse.SERVING, answer)
fails("health of nobody", lambda: stub.Check(health_pb2.HealthCheckRequest(service="nobody"), metadata=metadata), grpc.StatusCode.NOT_FOUND)
watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), metadata=metadata)
check("watch", next(watch).status == health_pb2.HealthCheckResponse.SERVING)
watch.cancel()

if KEY != "none":
    wrong = (("authorization", "Bearer wrong"),)
    fails("wrong key", lambda: list(generate(GenerateRequest(text="a"), metadata=wrong)), grpc.StatusCode.UNAUTHENTICATED, "not valid")
    fails("no key", lambda: stub.Check(health_pb2.HealthCheckRequest(service="")), grpc.StatusCode.UNAUTHENTICATED)
print("all is well")
