#!/usr/bin/env python3
"""llama.cpp's own HTTP server, from the package xllamacpp.

usage: llama_server.py MODEL.gguf PORT THREADS STREAMS
"""

import signal
import sys

import xllamacpp


def main() -> None:
    path, port, threads, streams = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_parallel = int(streams)
    # One pool of keys and values for all, as much as decoder-service gets.
    params.n_ctx = 16384
    params.kv_unified = True
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.n_threads_http = 2
    for pool in (params.cpuparams, params.cpuparams_batch):
        pool.n_threads = int(threads)
    server = xllamacpp.Server(params)
    print(server.listening_address, xllamacpp.get_system_info(), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
