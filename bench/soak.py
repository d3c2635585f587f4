#!/usr/bin/env python3
"""Mixed load on a server for as long as wanted, and what must hold afterwards. Not part of ./test.

usage: soak.py [--model ENGINE] [--whit build/release/whit] [--minutes 30] [--streams 8] [--cache-mib 192] [--report FILE]

`whit bench serve` keeps `--streams` plain streams under way and measures them. Beside it run, each in a thread of its own:
clients that leave in the middle of an answer or of their own request, malformed and hostile requests (tests/serve_fuzz.py),
readers that take a few bytes a second, structured answers with ever new grammars, several choices, embeddings, long prompts
with common beginnings. Checked: the server lives and ends with 0; no plain stream failed; memory after the first quarter
(caches are full by then: the KV cache is made small enough to be, but holds the streams) stays within 2 %; nothing runs, waits or holds a page once
the clients are gone; the 99th percentile of the time between tokens is within 2 × the median.
"""
import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import serve_support  # noqa: E402
from serve_fuzz import fuzz  # noqa: E402


class Soak:
    def __init__(self, options):
        self.options = options
        serve_support.WHIT = options.whit
        self.server = serve_support.Server(options.model, "--max-num-seqs", 32, "--max-queue", 512, "--kv-cache-memory", options.cache_mib,
                                           "--log-level", "error", *options.server_arguments.split())
        self.end = time.monotonic() + 60 * options.minutes
        self.counts, self.failures, self.rounds = {}, [], []
        self.lock = threading.Lock()
        text = (ROOT / "data/eval/prose.txt").read_text()
        self.words = text.split()

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def guarded(self, name, act, pause_s):
        """Repeats act(rng) until the end; what it raises is a failure."""
        rng = random.Random(name)
        while time.monotonic() < self.end and self.server.process.poll() is None:
            try:
                act(rng)
                self.count(name)
            except Exception as error:  # pylint: disable=broad-except
                with self.lock:
                    self.failures.append(f"{name}: {type(error).__name__}: {error}")
                time.sleep(1)
            time.sleep(rng.uniform(0, 2 * pause_s))

    def prompt(self, rng, words, shared=0):
        words, shared = (int(self.options.length_share * n) for n in (words, shared))
        at = rng.randrange(len(self.words) - words)
        return " ".join(self.words[:shared] + self.words[at:at + words] + ["and"])

    def connect(self, path, body):
        data = json.dumps(body).encode()
        connection = socket.create_connection((self.server.host, self.server.port), timeout=120)
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        return connection

    def leave(self, rng):
        body = {"prompt": self.prompt(rng, rng.randrange(1, 400)), "max_tokens": 400, "ignore_eos": True, "stream": rng.random() < 0.7,
                "n": rng.choice([1, 1, 3])}
        if rng.random() < 0.2:  # before the request is whole
            with socket.create_connection((self.server.host, self.server.port), timeout=20) as connection:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{\"prompt\"")
                time.sleep(rng.uniform(0, 0.5))
            return
        with self.connect("/v1/completions", body) as connection:
            connection.settimeout(rng.uniform(0.001, 1.5))
            try:
                while connection.recv(4096):
                    pass
            except TimeoutError:
                pass

    def read_slowly(self, rng):
        with self.connect("/v1/completions", {"prompt": self.prompt(rng, 20), "max_tokens": 60, "ignore_eos": True, "stream": True,
                                              "logprobs": 5}) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            until = time.monotonic() + rng.uniform(5, 20)
            while time.monotonic() < until and connection.recv(256):
                time.sleep(0.1)

    def send_nonsense(self, rng):
        fuzz(self.server.host, self.server.port, 20, rng.randrange(1 << 30))

    def ask_structured(self, rng):
        number = rng.randrange(1 << 30)
        fields = rng.choice([
            {"guided_regex": f"[a-f]{{1,6}}-{number}"}, {"guided_choice": [f"yes {number}", "no"]},
            {"guided_json": {"type": "object", "properties": {f"key{number}": {"type": "integer"}, "tags": {"type": "array", "items": {
                "enum": ["a", "b"]}, "maxItems": 3}}, "required": [f"key{number}"]}},
            {"structured_outputs": {"grammar": f'root ::= "<" item{{2}} "{number}>"\nitem ::= [0-9]+ ";"'}}])
        status, body = self.server.post("/v1/completions", {"prompt": self.prompt(rng, 10), "max_tokens": 40} | fields, timeout=300)
        if status not in (200, 429):
            raise AssertionError(body)

    def ask_long(self, rng):
        status, body = self.server.post("/v1/completions", {"prompt": self.prompt(rng, rng.randrange(50, 300), 200), "max_tokens": 16,
                                                            "cache_salt": rng.choice(["", "a"])}, timeout=300)
        if status not in (200, 429):
            raise AssertionError(body)

    def ask_others(self, rng):
        for path, body in [("/v1/embeddings", {"input": self.prompt(rng, 30)}), ("/tokenize", {"prompt": self.prompt(rng, 300)}),
                           ("/v1/chat/completions", {"messages": [{"role": "user", "content": self.prompt(rng, 12)}], "max_tokens": 12, "n": 2})]:
            status, body = self.server.post(path, body, timeout=300)
            if status not in (200, 429):
                raise AssertionError((path, body))

    def measure(self):
        """Plain streams until the end, in rounds of a minute or so."""
        seed = 0
        while time.monotonic() < self.end and self.server.process.poll() is None:
            seed += 1
            command = [str(self.options.whit), "bench", "serve", "--port", str(self.server.port), "--concurrency", str(self.options.streams),
                       "--num-prompts", str(6 * self.options.streams), "--input-len", str(max(1, int(64 * self.options.length_share))), "--output-len", "96", "--seed", str(seed), "--json"]
            result = subprocess.run(command, capture_output=True, check=False, timeout=1200)
            if result.returncode != 0:
                self.failures.append(f"streams: {result.stderr.decode()[-300:]}{result.stdout.decode()[-300:]}")
                return
            self.rounds.append(json.loads(result.stdout))

    def resident(self):
        for line in Path(f"/proc/{self.server.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def run(self):
        begin, memory = time.monotonic(), []
        threads = [threading.Thread(target=self.measure)]
        chaos = [] if self.options.calm else [("left", self.leave, 1), ("read slowly", self.read_slowly, 1), ("nonsense", self.send_nonsense, 2),
                                              ("structured", self.ask_structured, 1), ("long", self.ask_long, 1), ("others", self.ask_others, 1)]
        threads += [threading.Thread(target=self.guarded, args=each) for each in chaos]
        for thread in threads:
            thread.start()
        while time.monotonic() < self.end and self.server.process.poll() is None:
            memory.append((time.monotonic() - begin, self.resident()))
            time.sleep(1)
        for thread in threads:
            thread.join()
        alive = self.server.process.poll() is None
        report = {"minutes": self.options.minutes, "alive": alive, "requests": self.counts, "failures": self.failures[:20],
                  "streams": sum(r["completed"] for r in self.rounds), "memory_mib": memory}
        if alive:
            deadline = time.monotonic() + 30
            while True:
                metrics = self.server.metrics()
                left = [metrics[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")]
                if not any(left) or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            report["left"] = left
            report["prefix_hits"], report["preemptions"] = metrics["prefix_cache_hits_total"], metrics["num_preemptions_total"]
            report["exit"] = self.server.stop()
        return report

    def judge(self, report):
        memory, whole = report["memory_mib"], 60 * self.options.minutes
        early = statistics.median(m for t, m in memory if whole * 0.25 <= t < whole * 0.375)
        late = statistics.median(m for t, m in memory if t >= whole * 0.875)
        report["rss_mib"] = [round(memory[0][1], 1), round(early, 1), round(late, 1)]
        ratios = [r["p99_itl_ms"] / r["median_itl_ms"] for r in self.rounds]
        if not ratios:
            report["failures"].append("no round of the plain streams was finished")
            ratios = [float("inf")]
        report["itl"] = {"median_ms": [round(r["median_itl_ms"], 2) for r in self.rounds],
                         "p99_ms": [round(r["p99_itl_ms"], 2) for r in self.rounds],
                         "p99_over_median": [round(min(ratios), 2), round(statistics.median(ratios), 2), round(max(ratios), 2)]}
        checks = {"the server lives and ends with 0": report["alive"] and report.get("exit") == 0, "no request failed": not report["failures"],
                  "memory within 2 % after the first quarter": late <= 1.02 * early, "no page, no sequence left": not any(report.get("left", [1])),
                  "p99 of the time between tokens within 2 x the median": statistics.median(ratios) <= 2}
        report["checks"] = checks
        return all(checks.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path.home() / ".cache/whit/peers/w4a8", help="by default what bench/peers.py setup makes")
    parser.add_argument("--whit", type=Path, default=ROOT / "build/release/whit")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--cache-mib", type=int, default=192)
    parser.add_argument("--length-share", type=float, default=1, help="of the prompts' lengths; for models of short contexts")
    parser.add_argument("--calm", action="store_true", help="the plain streams alone")
    parser.add_argument("--server-arguments", default="", help="more arguments of whit serve")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    soak = Soak(options)
    try:
        report = soak.run()
    finally:
        if soak.server.process.poll() is None:
            soak.server.stop()
    passed = soak.judge(report)
    if options.report:
        options.report.write_text(json.dumps(report, indent=1))
    print(json.dumps({key: value for key, value in report.items() if key != "memory_mib"}, indent=1))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
