"""A client of DecoderService with nothing but grpcio and protobuf: no generated code.

The fields that the benchmarks use, by the numbers of proto/scone/decoder/v1/decoder.proto. They
are declared as proto2, which has the same wire format and sends a zero that was set.
"""

import time

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FIELDS = {
    "GenerateRequest": [("text", 1, "string"), ("token_ids", 2, "TokenIds"), ("sampling", 3, "Sampling")],
    "TokenIds": [("ids", 1, "uint32*")],
    "Sampling": [
        ("max_tokens", 1, "uint32"),
        ("temperature", 3, "float"),
        ("ignore_eos", 12, "bool"),
        ("logprobs", 15, "uint32"),
    ],
    "GenerateResponse": [("tokens", 2, "Token*"), ("finish", 4, "Finish")],
    "Token": [
        ("id", 1, "uint32"),
        ("match_length", 2, "uint32"),
        ("logprob", 3, "float"),
        ("top_logprobs", 4, "Token_*"),
    ],
    "Token_": [("id", 1, "uint32"), ("logprob", 2, "float")],
    "Finish": [("usage", 4, "Usage"), ("timings", 5, "Timings")],
    "Usage": [
        ("prompt_tokens", 1, "uint32"),
        ("completion_tokens", 2, "uint32"),
        ("positions", 3, "uint32"),
        ("matched_positions", 4, "uint32"),
    ],
    "Timings": [
        ("queue_us", 1, "uint64"),
        ("prefill_us", 2, "uint64"),
        ("decode_us", 3, "uint64"),
        ("lookup_us", 4, "uint64"),
    ],
    "ModelInfo": [
        ("model", 1, "string"),
        ("vocab_size", 4, "uint32"),
        ("context_tokens", 5, "uint32"),
        ("table_id", 8, "string"),
        ("embed_mode", 9, "string"),
    ],
}
SERVICE = "/scone.decoder.v1.DecoderService/"


def _messages() -> dict[str, type]:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto2")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            repeated = kind.endswith("*")
            kind = kind.rstrip("*")
            entry = message.field.add(name=field, number=number)
            entry.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in FIELDS:
                entry.type, entry.type_name = kinds.TYPE_MESSAGE, f".bench.{kind}"
            else:
                entry.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    get = message_factory.GetMessageClass
    return {name: get(pool.FindMessageTypeByName(f"bench.{name}")) for name in FIELDS}


MESSAGES = _messages()


def request(prompt, max_tokens: int, logprobs: int | None = None) -> bytes:
    """A greedy request for a text or token ids that does not end early."""
    sampling = MESSAGES["Sampling"](max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    if logprobs is not None:
        sampling.logprobs = logprobs
    message = MESSAGES["GenerateRequest"](sampling=sampling)
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.token_ids.ids.extend(prompt)
    return message.SerializeToString()


def response(data: bytes):
    """A GenerateResponse from the wire."""
    return MESSAGES["GenerateResponse"].FromString(data)


def wait_until_ready(address: str, seconds: float):
    """Waits for a server to have loaded its model; returns the facts it tells of it."""
    until = time.monotonic() + seconds
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(SERVICE + "GetModelInfo", None, MESSAGES["ModelInfo"].FromString)
        while True:
            try:
                return ask(b"", timeout=2)
            except grpc.RpcError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)


def generate(address: str, data: bytes, timeout: float) -> list:
    """All responses to one request."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream(SERVICE + "Generate", None, response)
        return list(call(data, timeout=timeout))
