#!/usr/bin/env python3
"""Times Whit beside llama.cpp on the default model, in one run, in turn.

    bench/peers.py setup                 builds llama.cpp from its PyPI source package and quantizes the models (once)
    bench/peers.py run [--rounds 5]      prints the table; every sample goes to peers.json beside the models

A round times one engine after the other, each with its own benchmark program (`llama-bench`, `llama-batched-bench`,
`whit bench`); the next round starts with another one, so that a drift of the machine's speed meets all alike. A ratio is
Whit's tokens per second over the peer's within a round; the table gives the median over rounds and the extremes.
Prefill is 512 tokens from an empty context, decode 128 tokens from an empty context, batches decode 128 tokens of N
sequences with prompts of 4 tokens. All lives under ${XDG_CACHE_HOME:-~/.cache}/whit/peers.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whit" / "peers"
WHIT = Path(os.environ.get("WHIT_BIN", ROOT / "build/release/whit"))
LLAMA = "0.3.36"  # llama-cpp-python on PyPI, whose source package holds llama.cpp
TOOLS = ("llama-bench", "llama-quantize", "llama-batched-bench", "llama-server")
# Whit's scheme and the peer's format of the same weight bytes.
PAIRS = (("w4a8", "Q4_0"), ("w4a16", "Q4_0"), ("w8a8", "Q8_0"), ("w8a16", "Q8_0"))


def run(*command, **options):
    return subprocess.run([str(each) for each in command], check=True, text=True, **options)


def output(*command):
    return run(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def tool(name):
    return HOME / "build" / "bin" / name


def setup():
    HOME.mkdir(parents=True, exist_ok=True)
    source = HOME / f"llama_cpp_python-{LLAMA}"
    if not source.exists():
        run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python",
            "-d", HOME, f"llama-cpp-python=={LLAMA}")
        with tarfile.open(HOME / f"{source.name}.tar.gz") as archive:
            archive.extractall(HOME, filter="data")
    if not all(tool(each).exists() for each in TOOLS):
        off = [f"-D{each}=OFF" for each in ("BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_CURL", "LLAMA_OPENSSL",
                                            "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_BUILD_APP")]
        run("cmake", "-G", "Ninja", "-S", source / "vendor/llama.cpp", "-B", HOME / "build",
            "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *off)
        run("cmake", "--build", HOME / "build", "--target", *TOOLS)
    model = output(ROOT / "scripts/fetch_model.sh").strip()
    for scheme, peer in PAIRS:
        gguf, engine = HOME / f"{peer}.gguf", HOME / scheme
        if not gguf.exists():
            run(tool("llama-quantize"), "--allow-requantize", model, gguf, peer)
        if not engine.exists():  # round-to-nearest: the mode changes no speed
            run(WHIT, "quantize", model, "--mode", "rtn", "--scheme", scheme, "-o", engine)


def llama(peer, threads, batches):
    rows = {}
    for row in json.loads(output(tool("llama-bench"), "-m", HOME / f"{peer}.gguf", "-p", 512, "-n", 128, "-r", 1,
                                 "-t", threads, "-o", "json")):
        rows["pp512" if row["n_prompt"] else "tg128"] = row["avg_ts"]
    if batches:
        lines = output(tool("llama-batched-bench"), "-m", HOME / f"{peer}.gguf", "-npp", 4, "-ntg", 128, "-t", threads,
                       "-c", 8192, "-npl", ",".join(map(str, batches)), "--output-format", "jsonl").splitlines()
        for line in lines:
            if line.startswith("{"):
                row = json.loads(line)
                rows[f"tg128 b{row['pl']}"] = row["speed_tg"]
    return rows


def whit(scheme, threads, batches):
    text = output(WHIT, "bench", HOME / scheme, "-p", 512, "-n", 128, "-b", ",".join(map(str, [1, *batches])),
                  "-t", threads, "-r", 1, "--json")
    return {row["test"] + (f" b{row['batch']}" if row["batch"] > 1 else ""): row["tokens_per_s"]
            for row in json.loads(text)["rows"]}


def measure(rounds, threads, batches):
    engines = [(whit, scheme) for scheme, _ in PAIRS] + [(llama, peer) for peer in dict.fromkeys(p for _, p in PAIRS)]
    samples = []
    for index in range(rounds):
        order = engines[index % len(engines):] + engines[:index % len(engines)]
        samples.append({name: program(name, threads, batches) for program, name in order})
        print(f"round {index + 1} of {rounds}", file=sys.stderr)
    return samples


def table(samples):
    lines = ["| pair | test | Whit t/s | llama.cpp t/s | ratio | least … most |", "|---|---|---:|---:|---:|---:|"]
    for scheme, peer in PAIRS:
        for test in samples[0][scheme]:
            if test not in samples[0][peer]:
                continue
            ours, theirs = ([each[name][test] for each in samples] for name in (scheme, peer))
            ratios = [a / b for a, b in zip(ours, theirs)]
            lines.append(f"| {scheme} ÷ {peer} | {test} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} "
                         f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} … {max(ratios):.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup")
    options = commands.add_parser("run")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--batches", type=lambda text: [int(each) for each in text.split(",") if each], default=[4, 16])
    arguments = parser.parse_args()
    if arguments.command == "setup":
        setup()
        return
    samples = measure(arguments.rounds, arguments.threads, arguments.batches)
    (HOME / "peers.json").write_text(json.dumps(samples, indent=1))
    print(table(samples))


if __name__ == "__main__":
    main()
