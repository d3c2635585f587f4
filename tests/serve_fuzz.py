#!/usr/bin/env python3
"""Random requests to a running server: each must get a 4xx, or a valid 200, and soon.

usage: serve_fuzz.py [--host 127.0.0.1] --port 8000 [--requests 10000] [--seed 1]

Four kinds in turn: bodies of random fields, sensible bodies with one or two hostile values, such bodies with damaged bytes,
and damaged HTTP. The tests send a few hundred; by hand, thousands.
"""
import argparse
import http.client
import json
import random
import socket
import sys
import time

PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"]
KEYS = ["prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "logit_bias", "logprobs", "stream",
        "echo", "guided_regex", "guided_json", "guided_grammar", "guided_choice", "structured_outputs", "response_format", "tools",
        "tool_choice", "stream_options", "model", "user", "priority", "cache_salt", "stop_token_ids", "input", "tokens", "top_logprobs",
        "chat_template_kwargs", "presence_penalty", "repetition_penalty", "best_of", "suffix", "encoding_format", "max_completion_tokens"]
INNER = ["type", "role", "content", "properties", "items", "json_schema", "schema", "function", "name", "parameters", "required", "enum",
         "pattern", "minLength", "maxLength", "minimum", "maximum", "anyOf", "$ref", "$defs", "minItems", "maxItems", "regex", "json",
         "grammar", "choice", "tool_calls", "arguments", "text", "include_usage", "additionalProperties", "const", "format", "0", "1"]
WORDS = ["object", "string", "integer", "number", "array", "boolean", "null", "user", "assistant", "system", "tool", "text", "json_object",
         "json_schema", "auto", "none", "required", "#", "#/$defs/a", "root ::= \"a\" | root \"b\"", "root ::= [a-z]{2,3}", "(a|b)*c{0,9}",
         "[^\\d\\s]+(?=x)", "a{1000}{1000}", "((((a*)*)*)*)*", "date-time", "base64", "float", "\ud800", "<|turn|>", "</s>"]
LIMIT_S = 30


class Fuzzer:
    def __init__(self, seed):
        self.rng = random.Random(seed)

    def value(self, depth=0):
        rng = self.rng
        kind = rng.randrange(11 if depth < 5 else 7)
        if kind == 0:
            return rng.choice([None, True, False])
        if kind == 1:
            return rng.choice([0, 1, -1, 2, 7, 100, 1 << 31, 1 << 63, (1 << 64) - 1, -(1 << 63), 10**30])
        if kind == 2:
            return rng.choice([0.0, 0.5, -0.5, 1.0, 1e308, 1e-320, -0.0, 2.5])
        if kind <= 4:
            return "".join(rng.choice("ab[](){}*+?\\|^$.,:\"'<>é\u0000😀 ") for _ in range(rng.randrange(12)))
        if kind <= 6:
            return rng.choice(WORDS)
        if kind <= 8:
            return [self.value(depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice(INNER): self.value(depth + 1) for _ in range(rng.randrange(6))}

    def random_body(self):
        return {key: self.value() for key in self.rng.sample(KEYS, self.rng.randrange(6))}

    def sensible_body(self):
        rng = self.rng
        body = {"prompt": "Once upon", "messages": [{"role": "user", "content": "Hello"}], "input": "x", "tokens": [5, 6]}
        extras = [{"temperature": 0.7}, {"n": 2}, {"stop": ["a"]}, {"logprobs": 1}, {"seed": 3}, {"guided_choice": ["a", "bc"]}, {"echo": True},
                  {"guided_regex": "[a-c]{1,3}"}, {"guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}}},
                  {"response_format": {"type": "json_object"}}, {"logit_bias": {"5": 1}}, {"stream": True}, {"user": "u"},
                  {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "required"}]
        for extra in rng.sample(extras, rng.randrange(3)):
            body |= extra
        for _ in range(rng.randrange(1, 3)):
            where = body
            while True:  # a place anywhere within
                key = rng.choice(list(where) if isinstance(where, dict) else range(len(where)))
                inner = where[key]
                if isinstance(inner, (dict, list)) and inner and rng.random() < 0.6:
                    where = inner
                    continue
                where[key] = self.value(2)
                break
            if rng.random() < 0.5:
                body[rng.choice(KEYS)] = self.value(1)
        return body

    def damaged(self, data):
        rng = self.rng
        for _ in range(rng.randrange(1, 4)):
            cut = rng.randrange(len(data) + 1)
            data = data[:cut] + bytes(rng.randrange(256) for _ in range(rng.randrange(4))) + data[cut + rng.randrange(4):]
        return data

    def body(self, kind):
        body = self.random_body() if kind == 0 else self.sensible_body()
        body.setdefault("max_tokens", 2)
        if body["max_tokens"] is None or (isinstance(body["max_tokens"], (int, float)) and body["max_tokens"] > 100):
            body["max_tokens"] = self.rng.choice([1, 2, 3, 1 << 63, 1.5])
        body.pop("ignore_eos", None)
        data = json.dumps(body).encode()
        if kind != 2:
            return data
        while True:  # until it still says how long the answer may be, or is no request any more
            damaged = self.damaged(data)
            try:
                read = json.loads(damaged)
            except ValueError:
                return damaged
            if not isinstance(read, dict) or isinstance(read.get("max_tokens"), str | list | dict | bool) or 0 <= (read.get("max_tokens") or 1000) <= 100:
                return damaged


def check_answer(status, headers, content, sent):
    if status != 200 and not 400 <= status < 500:
        raise AssertionError(f"status {status} for {sent!r}: {content[:300]!r}")
    if "text/event-stream" in headers.get("Content-Type", ""):
        if not content.endswith(b"data: [DONE]\n\n"):
            raise AssertionError(f"a stream without an end for {sent!r}: {content[-200:]!r}")
        return
    parsed = json.loads(content)
    if status != 200 and set(parsed.get("error", {})) != {"message", "type", "param", "code"}:
        raise AssertionError(f"an error of another shape for {sent!r}: {content[:300]!r}")


def raw_request(host, port, data):
    """Sends damaged HTTP; None, or the status."""
    with socket.create_connection((host, port), timeout=LIMIT_S) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    if not answer:
        return None
    status = int(answer.split(b" ", 2)[1])
    if status != 200 and not 400 <= status < 500:
        raise AssertionError(f"status {status} for {data!r}")
    return status


def fuzz(host, port, requests, seed, progress=None):
    """How often each status came. Raises AssertionError for any other answer, and for one that takes too long."""
    fuzzer = Fuzzer(seed)
    connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    counts, slowest = {}, 0.0
    for number in range(requests):
        kind = number % 4
        path = fuzzer.rng.choice(PATHS)
        data = fuzzer.body(kind)
        begin = time.monotonic()
        try:
            if kind == 3:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                status = raw_request(host, port, fuzzer.damaged(head) + data)
            else:
                connection.request("POST", path, data)
                response = connection.getresponse()
                status, content = response.status, response.read()
                check_answer(status, dict(response.getheaders()), content, (path, data))
        except (TimeoutError, socket.timeout) as error:
            raise AssertionError(f"no answer within {LIMIT_S} s to {path} {data!r}") from error
        except (http.client.HTTPException, OSError):
            # The server may close a connection after a refusal; it must take the next one.
            connection.close()
            status = None
        counts[status] = counts.get(status, 0) + 1
        slowest = max(slowest, time.monotonic() - begin)
        if progress and number % 1000 == 999:
            progress(f"{number + 1}: {counts}, slowest {slowest:.2f} s")
    connection.close()
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(fuzz(options.host, options.port, options.requests, options.seed, lambda line: print(line, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    main()
