"""llama.cpp's own server as a peer for `cargo xtask bench infer`.

    llama_server.py MODEL THREADS SLOTS CONTEXT

Prints its base URL in one line, serves until standard input closes. CONTEXT is tokens of each request.
"""

import os
import sys

import xllamacpp

model, threads, slots, context = sys.argv[1], *map(int, sys.argv[2:5])
params = xllamacpp.CommonParams()
params.model.path = model
params.n_parallel = slots
params.n_ctx = slots * context
params.cpuparams.n_threads = threads
params.cpuparams_batch.n_threads = threads
params.port = 0
# Its log lines go to where nobody parses them.
said = os.dup(1)
os.dup2(2, 1)
server = xllamacpp.Server(params)
os.write(said, (server.listening_address + "\n").encode())
sys.stdin.read()
