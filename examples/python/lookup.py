"""Fetches the f-gram rows of a token stream from a running embed-service and checks them.

    python3 examples/python/lookup.py --fgrams models/demo/fgrams.bin --addr 127.0.0.1:7300

Every match length is compared with the f-gram set, read from its own file, and every row with
the size and the element type the server states. Layouts: docs/formats.md. Messages:
proto/scone/embed/v1/embed.proto, compiled when this starts.
"""

import argparse
import array
import hashlib
import math
import random
import struct
import sys
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parents[2]
MAX_ANSWER_BYTES = 1 << 30


def messages_and_service():
    """The generated modules; grpcio-tools compiles the proto in memory."""
    sys.path.insert(0, str(ROOT / "proto"))
    return grpc.protos_and_services("scone/embed/v1/embed.proto")


class FgramSet:
    """The f-grams of a fgrams.bin, as tuples of token ids."""

    def __init__(self, path):
        data = Path(path).read_bytes()
        magic, version, self.vocab_size, self.max_n = struct.unpack_from("<8s3I", data)
        if magic != b"SCONEFGS" or version != 1:
            sys.exit(f"{path} is not an f-gram set of version 1")
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            sys.exit(f"{path} is damaged: its checksum differs")
        self.hash = hashlib.sha256(data).hexdigest()
        count_at = 60 + 8 * (self.max_n - 1)
        (count,) = struct.unpack_from("<Q", data, count_at)
        numbers = varints(data, count_at + 8, len(data) - 32)
        self.fgrams = set()
        for _ in range(count):
            n = next(numbers)
            self.fgrams.add(tuple(next(numbers) for _ in range(n)))
            next(numbers)  # how often it occurs in the corpus
            next(numbers)  # how often it is the longest match there

    def longest_match(self, ids, end):
        """Length of the longest f-gram whose last token is ids[end]; 0 when there is none."""
        for n in range(min(self.max_n, end + 1), 1, -1):
            if tuple(ids[end + 1 - n : end + 1]) in self.fgrams:
                return n
        return 0


def varints(data, at, end):
    """The unsigned LEB128 numbers in data[at:end]."""
    value = shift = 0
    for byte in memoryview(data)[at:end]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0


def shard_of(a, b, n):
    """The shard that answers a position whose last two token ids are a, b."""
    m = (1 << 64) - 1
    z = ((a << 32 | b) + 0x9E3779B97F4A7C15) & m
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & m
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & m
    return (z ^ z >> 31) % n


def decode_row(row, dtype, dim):
    """An encoded row as floats."""
    if dtype == "ROW_DTYPE_F32":
        return struct.unpack(f"<{dim}f", row)
    if dtype == "ROW_DTYPE_F16":
        return struct.unpack(f"<{dim}e", row)
    if dtype == "ROW_DTYPE_BF16":
        halves = struct.unpack(f"<{dim}H", row)
        return struct.unpack(f"<{dim}f", struct.pack(f"<{dim}I", *(h << 16 for h in halves)))
    if dtype == "ROW_DTYPE_INT8":
        (scale,) = struct.unpack_from("<f", row)
        return [scale * i for i in struct.unpack_from(f"<{dim}b", row, 4)]
    if dtype == "ROW_DTYPE_INT4":
        groups = (dim + 31) // 32
        scales = struct.unpack_from(f"<{groups}e", row)
        nibbles = [n for byte in row[2 * groups :] for n in (byte & 15, byte >> 4)]
        signed = [n - 16 if n > 7 else n for n in nibbles[:dim]]
        return [scales[i // 32] * n for i, n in enumerate(signed)]
    sys.exit(f"unknown element type {dtype}")


def requests(pb, ids, info):
    """The stream cut into requests: K-1 ids of context, then as many answers as are allowed."""
    step = info.max_positions - (info.max_n - 1)
    for number, start in enumerate(range(0, len(ids), step)):
        context = min(start, info.max_n - 1)
        piece = ids[start - context : start + step]
        yield pb.LookupRequest(
            id=number,
            token_ids=struct.pack(f"<{len(piece)}I", *piece),
            spans=[pb.Span(context=context, answers=len(piece) - context)],
            table_id=info.table_id,
        )


def look_up(stub, pb, ids, info):
    """Match length and encoded row (or None) of every position."""
    answers = {}
    for response in stub.Lookup(requests(pb, ids, info)):
        if response.WhichOneof("result") != "rows":
            sys.exit(f"request {response.id} was refused: {response.error}")
        answers[response.id] = response.rows  # they come in any order
    positions = []
    for _, rows in sorted(answers.items()):
        positions.extend(positions_of(rows, info))
    return positions


def positions_of(rows, info):
    """The positions of one answer; a row that several of them share travels once."""
    matched = 0
    for length in rows.match_lengths:
        if length == 0:
            yield 0, None
            continue
        row = rows.row_index[matched] if rows.row_index else matched
        matched += 1
        yield length, rows.rows[row * info.row_bytes : (row + 1) * info.row_bytes]


def check(positions, ids, fgrams, info, dtype):
    """Compares every position with the f-gram set; returns how often each length matched."""
    assert len(positions) == len(ids), f"{len(positions)} positions for {len(ids)} ids"
    lengths, row_of = {}, {}
    for end, (length, row) in enumerate(positions):
        shard = shard_of(ids[end - 1], ids[end], info.shard_count) if end else info.shard_index
        expected = fgrams.longest_match(ids, end) if shard == info.shard_index else 0
        assert length == expected, f"position {end}: length {length}, expected {expected}"
        lengths[length] = lengths.get(length, 0) + 1
        if row is None:
            continue
        assert len(row) == info.row_bytes, f"position {end}: a row of {len(row)} bytes"
        fgram = tuple(ids[end + 1 - length : end + 1])
        if fgram not in row_of:
            row_of[fgram] = row
            values = decode_row(row, dtype, info.dim)
            assert len(values) == info.dim and all(map(math.isfinite, values)), fgram
        assert row_of[fgram] == row, f"two rows of {fgram} differ"
    return lengths, row_of


def token_stream(args, fgrams):
    """The ids of a file, or f-grams in random order with a random id now and then."""
    if args.ids:
        ids = array.array("I", Path(args.ids).read_bytes())
        if sys.byteorder == "big":
            ids.byteswap()
        return list(ids)
    draw = random.Random(1)
    known = sorted(fgrams.fgrams)
    ids = []
    while len(ids) < args.positions:
        ids.extend(draw.choice(known))
        if draw.random() < 0.2:
            ids.append(draw.randrange(fgrams.vocab_size))
    return ids[: args.positions]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--addr", default="127.0.0.1:7300", help="host:port of an embed-service")
    parser.add_argument("--fgrams", required=True, help="fgrams.bin of the model served")
    parser.add_argument("--ids", help="file of token ids, unsigned 32-bit little-endian")
    parser.add_argument("--positions", type=int, default=10000, help="ids to make up without --ids")
    args = parser.parse_args()

    pb, services = messages_and_service()
    fgrams = FgramSet(args.fgrams)
    options = [
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        # One frame for a step of rows: with the default of 16 KiB the server writes many.
        ("grpc.http2.max_frame_size", 1 << 20),
    ]
    with grpc.insecure_channel(args.addr, options=options) as channel:
        stub = services.EmbedServiceStub(channel)
        info = stub.GetTableInfo(pb.GetTableInfoRequest(), timeout=10)
        if info.fgram_set_hash != fgrams.hash:
            sys.exit(f"the table at {args.addr} was made from another f-gram set than {args.fgrams}")
        ids = token_stream(args, fgrams)
        positions = look_up(stub, pb, ids, info)
    dtype = pb.RowDtype.Name(info.dtype)
    lengths, row_of = check(positions, ids, fgrams, info, dtype)

    print(f"table {info.table_id}: {info.rows} rows of {info.dim} x {dtype}, store {info.store}")
    for length, count in sorted(lengths.items()):
        print(f"  match length {length}: {count} of {len(ids)} positions")
    fgram, row = next(iter(row_of.items()), (None, None))
    if row is not None:
        first = ", ".join(f"{value:.4f}" for value in decode_row(row, dtype, info.dim)[:4])
        print(f"  row of {fgram}: {first}, ...")
    print(f"ok: {len(ids)} positions and {len(row_of)} distinct rows are as the f-gram set says")


if __name__ == "__main__":
    main()
