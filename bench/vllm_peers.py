#!/usr/bin/env python3
"""Times other people's GPU kernels by PyTorch and vLLM's libraries, for bench/cuda_peers.py (which says how to get them).

    bench/vllm_peers.py product w8a8 NxK M[,M…]      cuBLASLt's int8 product (int32 sums, not scaled; from 17 rows on)
    bench/vllm_peers.py product w4a16 NxK M[,M…]     Machete, symmetric in groups of 128, with the fastest of its schedules
    bench/vllm_peers.py attention [decode|prefill]   FlashAttention-3, 32 query and 8 key/value heads of 128

Each line: what, µs. A time is the median of 25 replays of a CUDA graph, over copies of the weight or cache larger than L2, after a
pause and 15 ms of warming, as bench_cuda_kernels and bench_cuda_attention measure. Results are not checked.
"""
import argparse
import importlib.util
import os
import time
from pathlib import Path

import torch

COPIES_BYTES = 420 << 20
GROUP = 128
UINT4_BIAS_8 = 1125899907892224  # vLLM's number of its scalar type uint4b8
HEADS, KV_HEADS, HEAD_DIM, PAGE = 32, 8, 128, 128
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def load(variable, name):
    """vLLM's library: the file that the environment names, or the installed package's."""
    path = os.environ.get(variable) or Path(importlib.util.find_spec("vllm").origin).parent / name
    torch.ops.load_library(str(path))


def copies_of(size):
    return max(2, min(64, -(-COPIES_BYTES // size)))


def microseconds(calls, replays=25):
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    calls[0]()
    torch.cuda.synchronize()
    rounds = max(1, int(4e-3 / ((time.perf_counter() - start) * len(calls))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    time.sleep(0.03)
    warm = time.perf_counter() + 0.015
    while time.perf_counter() < warm:
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()  # not timed: launches get ahead of the GPU
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / (rounds * len(calls)))
    return sorted(times)[replays // 2]


def int8_product(n, k, m):
    weights = [torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8) for _ in range(copies_of(n * k))]
    x = torch.randint(-127, 128, (m, k), device="cuda", dtype=torch.int8)
    return microseconds([lambda w=w: torch._int_mm(x, w.t()) for w in weights])


def machete(n, k, m):
    weights = []
    for _ in range(copies_of(n * k // 2)):
        codes = torch.randint(-(2**31), 2**31, (n, k // 8), device="cuda", dtype=torch.int64).to(torch.int32)
        weights.append(torch.ops._C.machete_prepack_B(codes.t(), BF16, UINT4_BIAS_8, BF16))
    scales = torch.rand(k // GROUP, n, device="cuda").to(BF16)
    x = torch.randn(m, k, device="cuda").to(BF16)

    def calls(schedule):
        return [lambda w=w: torch.ops._C.machete_mm(x, w, UINT4_BIAS_8, None, scales, None, GROUP, None, None, schedule) for w in weights]

    found = []
    for schedule in torch.ops._C.machete_supported_schedules(BF16, UINT4_BIAS_8, BF16, None, None, None, BF16):
        try:
            found.append((microseconds(calls(schedule), 3), schedule))
        except RuntimeError:  # a schedule that does not take this shape
            continue
    return microseconds(calls(min(found)[1]))


def flash_attention(q, k, v, out, starts, used, most_q, most_k, table, descale, k_starts, splits):
    return torch.ops._vllm_fa3_C.fwd(q, k, v, None, None, None, out, starts, k_starts, None, None, used, most_q, most_k, table, None, None, None, None, None,
                                     descale, descale, descale, HEAD_DIM**-0.5, True, -1, -1, 0.0, True, None, splits, None, 0, None, 1, 0, None)


def decode(storage, batch, context):
    """The fastest number of splits; queries in the cache's type, which for fp8 is what the kernel wants."""
    dtype = BF16 if storage == "bf16" else FP8
    pages = batch * context // PAGE
    size = pages * PAGE * KV_HEADS * HEAD_DIM * 2 * dtype.itemsize
    caches = [[torch.randn(pages, PAGE, KV_HEADS, HEAD_DIM, device="cuda").to(dtype) for _ in range(2)] for _ in range(copies_of(size))]
    table = torch.randperm(pages, device="cuda", dtype=torch.int32).view(batch, -1)
    q = torch.randn(batch, HEADS, HEAD_DIM, device="cuda").to(dtype)
    used = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
    out = torch.empty(batch, HEADS, HEAD_DIM, dtype=BF16, device="cuda")
    descale = None if storage == "bf16" else torch.ones(batch, KV_HEADS, device="cuda")
    return min(microseconds([lambda c=c: flash_attention(q, c[0], c[1], out, starts, used, 1, context, table, descale, None, splits) for c in caches])
               for splits in (0, 1, 4, 8, 16, 32) if batch * KV_HEADS * splits <= 2048)


def prefill(storage, tokens):
    dtype = BF16 if storage == "bf16" else FP8
    q, k, v = (torch.randn(tokens, heads, HEAD_DIM, device="cuda").to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    starts = torch.tensor([0, tokens], dtype=torch.int32, device="cuda")
    out = torch.empty(tokens, HEADS, HEAD_DIM, dtype=BF16, device="cuda")
    descale = None if storage == "bf16" else torch.ones(1, KV_HEADS, device="cuda")
    return microseconds([lambda: flash_attention(q, k, v, out, starts, None, tokens, tokens, None, descale, starts, 1)])


def show(name, us):
    print(f"{name} {us:.1f}", flush=True)
    torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options = commands.add_parser("product")
    options.add_argument("format", choices=["w8a8", "w4a16"])
    options.add_argument("shape", help="NxK")
    options.add_argument("m", help="rows, separated by commas")
    options = commands.add_parser("attention")
    options.add_argument("phase", nargs="?", choices=["decode", "prefill"])
    arguments = parser.parse_args()
    if arguments.command == "product":
        n, k = map(int, arguments.shape.split("x"))
        if arguments.format == "w4a16":
            load("WHIT_VLLM_C", "_C_stable_libtorch.abi3.so")
        for m in map(int, arguments.m.split(",")):
            if arguments.format == "w4a16":
                show(m, machete(n, k, m))
            elif m > 16:
                show(m, int8_product(n, k, m))
        return
    load("WHIT_VLLM_FA3", "vllm_flash_attn/_vllm_fa3_C.abi3.so")
    for storage in ("bf16", "fp8"):
        if arguments.phase != "prefill":
            for batch, context in ((1, 4096), (16, 4096), (64, 4096), (1, 32768)):
                show(f"decode {storage} {batch} {context}", decode(storage, batch, context))
        if arguments.phase != "decode":
            for tokens in (4096, 16384):
                show(f"prefill {storage} 1 {tokens}", prefill(storage, tokens))


if __name__ == "__main__":
    main()
