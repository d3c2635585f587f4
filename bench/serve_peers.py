#!/usr/bin/env python3
"""Serving side by side with llama-server: the same requests, the same two threads, the load generator on the same cores.

usage: serve_peers.py [--streams 1,8,32] [--rounds 3]        after bench/peers.py setup, which builds llama-server

Each round runs every server once, alone, in an order that alternates, with `whit bench serve` as the load. Printed: output
tokens per second, medians of TTFT and ITL, the generator's own CPU time, and the ratio whit / llama-server as the median
over rounds with its range. In the same rounds: `whit bench` at the same batch (what the engine does without a server, prompts
and clients), and the CPU time a token of the thread that turns tokens into answers. Then the time to the first token of a
prompt whose first 512 tokens are cached, against a cold one.
"""
import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import peers


def ready(url, process, limit_s=120):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(url, timeout=1).status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not answer")


@contextlib.contextmanager
def server(command, health):
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready(health, process)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def thread_seconds(pid):
    """CPU time of a process's first thread: in `whit serve`, the one that reads, writes and makes answers of tokens."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(options, port, streams, **more):
    values = {"concurrency": streams, "num_prompts": 4 * streams, "input_len": options.input_len, "output_len": options.output_len} | more
    command = [str(options.whit), "bench", "serve", "--port", str(port), "--json"]
    for name, value in values.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whit", type=Path, default=peers.WHIT)
    parser.add_argument("--engine", type=Path, default=peers.HOME / "w4a8")
    parser.add_argument("--llama", type=Path, default=peers.tool("llama-server"))
    parser.add_argument("--gguf", type=Path, default=peers.HOME / "Q4_0.gguf")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--prefix-only", action="store_true", help="the cached prefix alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--input-len", type=int, default=96)
    parser.add_argument("--output-len", type=int, default=64)
    options = parser.parse_args()
    streams = [int(n) for n in options.streams.split(",")]
    most = max(streams)
    context = 2 * (2 * options.input_len + options.output_len)
    servers = {"whit": ([options.whit, "serve", options.engine, "--port", "8101", "--threads", str(options.threads), "--max-num-seqs", str(most),
                         "--log-level", "warning"], "http://127.0.0.1:8101/ready", 8101)}
    if not options.without_peer:
        servers["llama-server"] = ([options.llama, "-m", options.gguf, "--port", "8102", "-t", str(options.threads), "-np", str(most), "-c",
                                    str(most * context), "--no-webui"], "http://127.0.0.1:8102/health", 8102)
    figures, bench, overhead = {}, {}, {}
    for round_number in range(0 if options.prefix_only else options.rounds):
        for name in list(servers)[::1 if round_number % 2 == 0 else -1]:
            command, health, port = servers[name]
            with server(command, health) as pid:
                load(options, port, 2)
                for count in streams:
                    before = thread_seconds(pid)
                    result = load(options, port, count)
                    figures.setdefault((name, count), []).append(result)
                    if name == "whit":
                        overhead.setdefault(count, []).append(1e6 * (thread_seconds(pid) - before) / result["total_output_tokens"])
        command = [options.whit, "bench", options.engine, "-p", "0", "-n", options.output_len, "-b", options.streams, "-r", "1", "-t", options.threads, "--json"]
        for row in json.loads(peers.output(*command))["rows"]:
            bench.setdefault(row["batch"], []).append(row["tokens_per_s"])
        print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print("| server | streams | tok/s | TTFT ms | ITL ms | p99 ITL ms | client CPU, % of the time |\n|---|--:|--:|--:|--:|--:|--:|")
    for (name, count), results in figures.items():
        def median(key, results=results):
            return statistics.median(result[key] for result in results)
        cost = statistics.median(100 * result["client_cpu_s"] / result["duration"] for result in results)
        print(f"| {name} | {count} | {median('output_throughput'):.1f} | {median('median_ttft_ms'):.1f} | {median('median_itl_ms'):.2f} | "
              f"{median('p99_itl_ms'):.2f} | {cost:.1f} |")

    def shown(values, unit=""):
        return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} … {max(values):.2f})"
    throughput = {key: [result["output_throughput"] for result in results] for key, results in figures.items()}
    for count in streams if figures else []:
        served = throughput["whit", count]
        if not options.without_peer:
            print(f"{count} streams: whit / llama-server {shown([a / b for a, b in zip(served, throughput['llama-server', count])])}")
        print(f"{count} streams: served / whit bench {shown([a / b for a, b in zip(served, bench[count])])}, "
              f"whit bench {shown(bench[count], ' tok/s')}; answers' thread {shown(overhead[count], ' us a token')}")

    command, health, port = servers["whit"]
    with server(command, health):
        # Prompts with one beginning and different ends: all but the first find it cached; the median is theirs.
        def first_token(seed, prompts):
            result = load(options, port, 1, input_len=420, shared_len=400, output_len=2, num_prompts=prompts, seed=seed)
            return result["median_ttft_ms"], result["total_input_tokens"] // prompts
        first_token(1, 1)
        cold, warm = [], []
        for seed in range(100, 105):
            cold.append(first_token(seed, 1))
            warm.append(first_token(200 + seed, 9))
        ratio = [a[0] / b[0] for a, b in zip(warm, cold)]
        print(f"TTFT of a prompt of {cold[0][1]} tokens: cold {shown([c[0] for c in cold], ' ms')}, prefix cached {shown([w[0] for w in warm], ' ms')}, "
              f"ratio {shown(ratio)}")


if __name__ == "__main__":
    main()
