#!/usr/bin/env python3
"""Serving side by side with llama-server: the same requests, the same two threads, the load generator on the same cores.

usage: serve_peers.py --whit build/release/whit --engine ENGINE --llama llama-server --gguf FILE [--streams 1,8,32] [--rounds 3]

Each round runs every server once, alone, in an order that alternates, with `whit bench serve` as the load. Printed: output
tokens per second, medians of TTFT and ITL, the generator's own CPU seconds, and the ratio whit / llama-server as the median
over rounds with its range. Also: `whit bench` at the same batch (what the engine does without a server), and the time to the
first token of a prompt whose 512-token beginning is cached, against a cold one.
"""
import argparse
import contextlib
import json
import re
import statistics
import subprocess
import time
import urllib.request


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
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready(health, process)
        yield
    finally:
        process.terminate()
        process.wait(30)


def load(options, port, streams, *more):
    command = [options.whit, "bench", "serve", "--port", str(port), "--concurrency", str(streams), "--num-prompts", str(4 * streams),
               "--input-len", str(options.input_len), "--output-len", str(options.output_len), "--json", *map(str, more)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whit", required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--llama")
    parser.add_argument("--gguf")
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
    if options.llama:
        servers["llama-server"] = ([options.llama, "-m", options.gguf, "--port", "8102", "-t", str(options.threads), "-np", str(most), "-c",
                                    str(most * context), "--no-webui"], "http://127.0.0.1:8102/health", 8102)
    figures = {}
    for round_number in range(options.rounds):
        for name in list(servers)[::1 if round_number % 2 == 0 else -1]:
            command, health, port = servers[name]
            with server(command, health):
                load(options, port, 2)
                for count in streams:
                    figures.setdefault((name, count), []).append(load(options, port, count))
    print("| server | streams | tok/s | TTFT ms | ITL ms | p99 ITL ms | client CPU s |\n|---|--:|--:|--:|--:|--:|--:|")
    for (name, count), results in figures.items():
        def median(key, results=results):
            return statistics.median(result[key] for result in results)
        print(f"| {name} | {count} | {median('output_throughput'):.1f} | {median('median_ttft_ms'):.1f} | {median('median_itl_ms'):.2f} | "
              f"{median('p99_itl_ms'):.2f} | {median('client_cpu_s'):.2f} |")
    if options.llama:
        for count in streams:
            ratios = [a["output_throughput"] / b["output_throughput"] for a, b in zip(figures["whit", count], figures["llama-server", count])]
            print(f"whit / llama-server at {count}: {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
    bench = json.loads(subprocess.run([options.whit, "bench", options.engine, "-p", "0", "-n", str(options.output_len), "-b", options.streams,
                                       "-t", str(options.threads), "--json"], check=True, capture_output=True).stdout)
    for row in bench["rows"]:
        results = figures["whit", row["batch"]]
        served = statistics.median(result["output_throughput"] for result in results)
        print(f"whit bench tg{options.output_len} b{row['batch']}: {row['tokens_per_s']:.1f} tok/s; served: {100 * served / row['tokens_per_s']:.0f} %")

    command, health, port = servers["whit"]
    with server(command, health):
        def first_token(shared, seed):
            result = load(options, port, 1, "--input-len", 400, "--shared-len", shared, "--output-len", 2, "--num-prompts", 1, "--seed", seed)
            return result["median_ttft_ms"]
        first_token(0, 1)
        cold = statistics.median(first_token(0, 100 + i) for i in range(5))
        body = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").read())
        warm = statistics.median(first_token(400, 7) for _ in range(6))
        print(f"TTFT of {re.sub(' .*', '', body['data'][0]['id'])}: cold {cold:.1f} ms, prefix cached {warm:.1f} ms ({100 * warm / cold:.0f} %)")


if __name__ == "__main__":
    main()
