"""Servers that the load is put on: decoder-service by gRPC, llama.cpp's server by HTTP.

Each yields, for one request, the time and the raw bytes of every piece of its answer; these are
read only after the clock has stopped, so that the client takes little of the machine.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import grpc
from scone.decoder.v1 import decoder_pb2 as pb

Piece = tuple[float, bytes]


class DecoderService:
    """A running decoder-service."""

    METHOD = "/scone.decoder.v1.DecoderService/"

    def __init__(self, address: str, channels: int = 4):
        # A pool each, or all would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [grpc.aio.insecure_channel(address, options) for _ in range(channels)]
        self.next = 0

    def request(self, ids: list[int], tokens: int, **sampling) -> bytes:
        sampling = {"temperature": 0.0, "ignore_eos": True} | sampling
        parameters = pb.SamplingParameters(max_tokens=tokens, **sampling)
        return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=parameters).SerializeToString()

    async def stream(self, ids: list[int], tokens: int, **sampling) -> AsyncIterator[Piece]:
        self.next += 1
        channel = self.channels[self.next % len(self.channels)]
        call = channel.unary_stream(self.METHOD + "Generate", None, None)
        async for data in call(self.request(ids, tokens, **sampling)):
            yield time.perf_counter(), data

    @staticmethod
    def tokens(data: bytes) -> list[int]:
        return [token.id for token in pb.GenerateResponse.FromString(data).tokens]

    @staticmethod
    def finish(data: bytes) -> pb.Finish:
        return pb.GenerateResponse.FromString(data).finish

    async def ready(self, seconds: float) -> None:
        """Returns when the model is loaded."""
        until = time.monotonic() + seconds
        ask = self.channels[0].unary_unary(self.METHOD + "GetModelInfo", None, None)
        while True:
            try:
                await ask(b"", timeout=5)
                return
            except grpc.aio.AioRpcError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


class LlamaCpp:
    """A running server of llama.cpp."""

    def __init__(self, address: str):
        self.host, port = address.split(":")
        self.port = int(port)

    async def stream(self, ids: list[int], tokens: int, **_) -> AsyncIterator[Piece]:
        body = {"prompt": ids, "n_predict": tokens, "temperature": 0, "ignore_eos": True}
        body |= {"stream": True, "cache_prompt": False, "samplers": ["top_k"], "top_k": 1}
        reader, writer = await self.post("/completion", body)
        try:
            async for line in reader:
                if line.startswith(b"data: {"):
                    yield time.perf_counter(), line[6:]
        finally:
            writer.close()

    async def post(self, path: str, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return reader, writer

    @staticmethod
    def tokens(data: bytes) -> list[int]:
        piece = json.loads(data)
        if "error" in piece:
            raise RuntimeError(str(piece["error"]))
        return [] if piece.get("stop") else piece["tokens"]

    async def ready(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                count = sum([len(self.tokens(data)) async for _, data in self.stream([1, 2, 3], 2)])
                if count:
                    return
            except (OSError, RuntimeError):
                pass
            if time.monotonic() > until:
                raise TimeoutError(f"llama.cpp is not ready after {seconds} s")
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        pass


KINDS = {"decoder-service": DecoderService, "llama.cpp": LlamaCpp}
