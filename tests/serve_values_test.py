"""Every parameter of every route at the ends of its range: what is inside is served, what is outside is a 400 that names it."""
import json
import subprocess
import tempfile
import unittest

from cli_support import WHIT, tiny_model
from serve_support import Server, ServeTest

NO_NUMBER = ["1", [], {}, True]
NO_INTEGER = [*NO_NUMBER, 1.5, 1 << 63, -(1 << 63) - 1, 1e30]
NO_STRING = [1, [], {}, True]
NO_BOOLEAN = [0, 1, "true", [], {}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
# Name: values that are served, values that are refused. null is always served: it is no value.
BOTH = {
    "temperature": ([0, 0.0, 2, 1.5, 1e-320], [-0.001, 2.001, -1e308, *NO_NUMBER]),
    "top_p": ([1e-6, 1, 0.5], [0, -1, 1.0001, *NO_NUMBER]),
    "min_p": ([0, 1], [-0.1, 1.1, *NO_NUMBER]),
    "top_k": ([-1, 0, 1, 2.0, (1 << 31) - 1], [-2, 1 << 31, *NO_INTEGER]),
    "presence_penalty": ([-2, 2], [-2.1, 2.1, *NO_NUMBER]),
    "frequency_penalty": ([-2, 2], [-2.1, 2.1, *NO_NUMBER]),
    "repetition_penalty": ([0.01, 1, 100], [0, -1, 101, *NO_NUMBER]),
    "seed": ([0, -(1 << 63), (1 << 63) - 1, 7.0], [(1 << 63), 0.5, "1", [], True]),
    "n": ([1, 8], [0, -1, 129, 10**6, *NO_INTEGER]),
    "best_of": ([1], [0, 2, *NO_INTEGER]),
    "stop": (["x", ["x"], ["x"] * 16, [], "x" * 256, "é"], ["", [""], ["x"] * 17, "x" * 257, 5, {}, [5], [["x"]], True]),
    "stop_token_ids": ([[], [0], [319], [5] * 64], [[-1], [320], [1.5], ["5"], [5] * 65, 5, "5", {}, [1 << 63]]),
    "logit_bias": ([{}, {"5": 100}, {"319": -100}, {str(i): 0 for i in range(320)}],
                   [[], [1], 5, "x", {"x": 1}, {"-1": 1}, {"320": 1}, {"5": 101}, {"5": -101}, {"5": "1"}, {"5": True}, {"5": None}, {"": 1},
                    {"1.5": 1}, {"99999999999999999999": 1}, {str(i): 0 for i in range(1025)}]),
    "ignore_eos": ([True, False], NO_BOOLEAN),
    "skip_special_tokens": ([True, False], NO_BOOLEAN),
    "include_stop_str_in_output": ([True, False], NO_BOOLEAN),
    "stream": ([False], NO_BOOLEAN),
    "stream_options": ([], [{}, {"include_usage": True}, 5, []]),  # only with a stream
    "user": (["", "u", "x" * 256], ["x" * 257, *NO_STRING]),
    "cache_salt": (["", "s", "x" * 256], ["x" * 257, *NO_STRING]),
    "priority": ([-100, 0, 100], [-101, 101, *NO_INTEGER]),
    "model": (["tiny"], [5, [], {}, True]),
    "min_tokens": ([0], [1, "x"]),
    "use_beam_search": ([False], [True, 1]),
    "length_penalty": ([1.0], [0.5]),
    "bad_words": ([[]], [["x"]]),
    "logits_processors": ([[]], [["x"]]),
    "allowed_token_ids": ([[]], [[5]]),
    "guided_regex": (["a", "[a-c]{1,3}", "^x$"], ["(", ")", "*", "[", "a{3000}", r"(a)\1", "(?=x)", "(" * 60000, "a{1000}{1000}", "a" * 300000,
                                                "[^\\x00-\\U0010ffff]", *NO_STRING]),
    "guided_choice": ([["a"], ["yes", "no"]], [[], "a", [5], ["x" * 4097], ["x"] * 1025, {}, True]),
    "guided_grammar": (['root ::= "a"', 'root ::= [0-9]{1,3}'], ["", "x", 'root ::= root "a"', 'root ::= other', 'root ::= "a', *NO_STRING]),
    "guided_json": ([SCHEMA, json.dumps(SCHEMA), {"type": "integer"}, True],
                    ["{", 5, [], {"type": "strange"}, {"not": {}}, {"enum": []}, {"$ref": "#/x"}, {"minimum": 5, "maximum": 1, "type": "integer"},
                     {"type": "string", "pattern": "("}, {"unknownKeyword": 1}, {"if": {}, "then": {}}, False]),
    "response_format": ([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
                         {"type": "json_object", "schema": SCHEMA}],
                        ["json", 5, [], {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
                         {"type": "json_schema", "json_schema": {"schema": {"type": "strange"}}},
                         {"type": "json_object", "schema": {"type": "strange"}}]),
    "grammar": (['root ::= "a"', ""], ["x", 'root ::= root "a"', *NO_STRING]),
    "json_schema": ([SCHEMA], [5, "x", {"type": "strange"}]),
    "structured_outputs": ([{"regex": "a"}, {"choice": ["a"]}, {"json": SCHEMA}, {"json_object": True}, {"grammar": 'root ::= "a"'}], [5, [], "x", {}]),
}
COMPLETION = BOTH | {
    "prompt": (["x", [5], ["x", "y"], [[5], [6]], ["x"] * 64, ["x", [5]]],
               ["", [], [1.5], [-1], [320], [1 << 63], {}, True, 5, [[]], [""], [True], [{}], ["x"] * 65, "x" * 512, [5] * 512, [5, "x"]]),
    "max_tokens": ([1, 2.0, (1 << 31) - 1], [0, -1, 1 << 31, *NO_INTEGER]),
    "echo": ([True, False], NO_BOOLEAN),
    "logprobs": ([0, 5, 20], [-1, 21, *NO_INTEGER]),
    "suffix": ([""], ["x"]),
    "prompt_logprobs": ([], [1]),
    "add_special_tokens": ([True, False], NO_BOOLEAN),
}
MESSAGE = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT = BOTH | {
    "messages": ([[MESSAGE], [{"role": "system", "content": "x"}, MESSAGE], [{"role": "user", "content": [{"type": "text", "text": "x"}]}]],
                 [[], "x", {}, 5, [MESSAGE] * 4097]),
    "max_tokens": ([1, (1 << 31) - 1], [0, -1, 1 << 31, *NO_INTEGER]),
    "max_completion_tokens": ([1, (1 << 31) - 1], [0, -1, 1 << 31, *NO_INTEGER]),
    "logprobs": ([True, False], NO_BOOLEAN),
    "top_logprobs": ([0], [1, -1, 21, *NO_INTEGER]),  # more than 0 only with logprobs
    "tools": ([[], [TOOL]], [{}, 5, "x", [5], [{}], [{"type": "other"}], [{"type": "function", "function": {}}], [TOOL] * 129,
                             [{"type": "function", "function": {"name": "", "parameters": {}}}]]),
    "tool_choice": (["none"], ["auto", "required", 5, [], {}, {"type": "function", "function": {"name": "f"}}]),  # without tools
    "chat_template_kwargs": ([{}, {"x": 1}], [5, [], "x", {str(i): 1 for i in range(65)}]),
    "chat_template": ([], ["{{x}}"]),
    "add_generation_prompt": ([True], NO_BOOLEAN),
    "continue_final_message": ([False], [True]),
    "echo": ([False], [True]),
    "functions": ([[]], [[{}]]),
    "function_call": (["none"], ["auto"]),
    "modalities": ([["text"]], [["audio"]]),
    "audio": ([], [{}]),
    "prompt_logprobs": ([], [1]),
}
EMBEDDING = {
    "input": (["x", [5], ["x", "y"], [[5], [6]]], ["", [], [1.5], {}, 5, True, ["x"] * 65, [320]]),
    "encoding_format": (["float", "base64"], ["int8", *NO_STRING]),
    "dimensions": ([], [3, 0, *NO_INTEGER]),
    "model": (["tiny"], [5, [], {}, True]),
    "user": (["u"], ["x" * 257, *NO_STRING]),
}
# Beside --port 0: values that serve, values that are refused before anything is loaded.
FLAGS = {
    "--host": (["127.0.0.1", "localhost"], ["nowhere.invalid"]),
    "--port": ([], ["-1", "65536", "x", "1.5", ""]),
    "--max-num-seqs": (["1", "64"], ["0", "-1", "1025", "x", "1.5"]),
    "--max-model-len": (["0", "64", "512"], ["-1", "x", "513", "99999999999999999999"]),
    "--max-queue": (["0", "10"], ["-1", "x", "99999999"]),
    "--max-num-batched-tokens": (["64"], ["1", "9000", "x"]),
    "--threads": ([], ["-1", "x", "100000"]),
    "--metrics-compat": (["vllm"], ["sglang", ""]),
    "--prefix-caching": (["on", "off"], ["maybe", "1", ""]),
    "--kv-cache-dtype": (["auto"], ["int9", "fp8", ""]),
    "--log-level": (["debug", "info", "warning", "error"], ["loud", ""]),
    "--scheduling-policy": (["max-utilization", "guaranteed-no-evict"], ["fifo"]),
    "--draft-tokens": (["0", "16"], ["-1", "17", "x"]),
    "--api-key": (["secret"], ["", "x" * 513]),
    "--served-model-name": (["any name"], [""]),
    "--kv-cache-memory": (["0", "1"], ["-1", "x"]),
    "--max-connections": (["1"], ["0", "x"]),
    "--max-body-size": (["1"], ["0", "1025"]),
    "--drain-timeout": (["0", "1"], ["-1", "86401"]),
    "--draft-model": ([], ["/nowhere", ""]),
    "--unknown": ([], ["1"]),
}


class Values(ServeTest):
    def check(self, path, plain, table):
        for name, (inside, outside) in table.items():
            for value in [None, *inside]:
                if value is None and name in ("prompt", "messages", "input"):
                    continue
                with self.subTest(path=path, field=name, value=str(value)[:60]):
                    status, body = self.server.post(path, plain | {name: value})
                    self.assertEqual(status, 200, body)
            for value in outside:
                with self.subTest(path=path, field=name, value=str(value)[:60]):
                    self.refused(path, plain | {name: value}, name)

    def test_completions(self):
        self.check("/v1/completions", {"prompt": "x", "max_tokens": 1}, COMPLETION)

    def test_chat(self):
        self.check("/v1/chat/completions", {"messages": [MESSAGE], "max_completion_tokens": 1}, CHAT)

    def test_embeddings(self):
        self.check("/v1/embeddings", {"input": "x"}, EMBEDDING)

    def test_values_within_values_are_named_by_their_path(self):
        stream = {"stream": True}
        for path, fields, param in [
                ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": 1}} | stream, "stream_options.include_usage"),
                ("/v1/completions", {"prompt": "x", "structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
                ("/v1/completions", {"prompt": "x", "structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
                ("/v1/completions", {"prompt": "x", "guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
                ("/v1/completions", {"prompt": "x", "response_format": {"type": 5}}, "response_format.type"),
                ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
                ("/v1/chat/completions", {"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
                ("/v1/chat/completions", {"messages": [MESSAGE, {"role": "user"}]}, "messages[1]"),
                ("/v1/chat/completions", {"messages": [MESSAGE], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
                ("/v1/chat/completions", {"messages": [MESSAGE], "tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "tool_choice"),
                ("/tokenize", {"prompt": 5}, "prompt"), ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": "x", "add_special_tokens": 1}, "add_special_tokens"),
                ("/detokenize", {"tokens": "x"}, "tokens"), ("/detokenize", {"tokens": [-1]}, "tokens"), ("/detokenize", {}, "tokens")]:
            with self.subTest(path=path, fields=str(fields)):
                self.refused(path, fields, param)
        self.refused("/v1/completions", {"prompt": "x", "model": "absent"}, "model", 404)


class Flags(unittest.TestCase):
    def test_every_flag_has_a_range(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        model = tiny_model(folder.name)
        for flag, (inside, outside) in FLAGS.items():
            for value in inside:
                with self.subTest(flag=flag, value=value):
                    server = Server(model, flag, value)
                    try:
                        self.assertEqual(server.request("GET", "/ready")[0], 200)
                    finally:
                        self.assertEqual(server.stop(), 0)
            for value in outside:
                with self.subTest(flag=flag, value=value):
                    result = subprocess.run([str(WHIT), "serve", str(model), "--port", "0", f"{flag}={value}"], capture_output=True, timeout=60, check=False)
                    self.assertIn(result.returncode, (2, 3, 4), result.stderr)
                    self.assertEqual(result.stdout, b"")
                    self.assertTrue(result.stderr.strip())


if __name__ == "__main__":
    unittest.main()
