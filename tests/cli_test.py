"""The program from end to end, on a tiny model and (where WHIT_SMOL_GGUF names it) on the default one."""
import json
import os
import signal
import subprocess
import unittest
from pathlib import Path

from cli_support import WHIT, CliTest, tiny_model

COMMANDS = ["quantize", "build", "calibrate", "run", "chat", "serve", "eval", "bench", "compare", "inspect", "convert", "tokenize", "doctor"]
TEXT = "It was a quiet morning, and the harbour lay still under a thin mist. " * 12


class Usage(CliTest):
    def test_help_teaches_every_command(self):
        overview = self.ok("--help")
        for command in COMMANDS:
            self.assertIn(command, overview)
            self.assertIn("Example", self.ok(command, "--help"), command)

    def test_the_version_is_printed(self):
        self.assertRegex(self.ok("--version"), r"^whit \d+\.\d+\.\d+\n$")

    def test_wrong_usage_is_refused_with_status_2(self):
        for arguments, word in [
            (["walk"], "walk"),
            (["run"], "MODEL"),
            (["run", "m"], "prompt"),
            (["run", "m", "--prompt", "x", "--max-tokens", "0"], "--max-tokens"),
            (["run", "m", "--prompt", "x", "--max-tokens", "ten"], "--max-tokens"),
            (["run", "m", "--prompt", "x", "--temperature", "-1"], "--temperature"),
            (["run", "m", "--prompt", "x", "--top-p", "1.5"], "--top-p"),
            (["run", "m", "--prompt", "x", "--min-p", "-0.1"], "--min-p"),
            (["run", "m", "--prompt", "x", "--threads", "-2"], "--threads"),
            (["run", "m", "--prompt", "x", "--isa", "sse"], "--isa"),
            (["run", "m", "--prompt", "x", "--wings"], "--wings"),
            (["quantize", "m"], "--output"),
            (["quantize", "m", "--mode", "magic", "-o", "x"], "--mode"),
            (["quantize", "m", "--scheme", "w3a16", "-o", "x"], "--scheme"),
            (["quantize", "m", "--group-size", "48", "-o", "x"], "--group-size"),
            (["quantize", "m", "--head", "int2", "-o", "x"], "--head"),
            (["quantize", "m", "--calib-samples", "0", "-o", "x"], "--calib-samples"),
            (["quantize", "m", "--alpha", "2", "-o", "x"], "--alpha"),
            (["eval", "m"], "--text"),
            (["eval", "m", "--text", "t", "--ctx-size", "1"], "--ctx-size"),
            (["bench", "m", "-b", "0"], "--batch"),
            (["compare", "m"], "--recipes"),
            (["compare", "m", "--recipes", "awq", "-o", "x"], "MODE:SCHEME"),
            (["tokenize", "m"], "--text"),
        ]:
            with self.subTest(arguments=arguments):
                self.refused(2, [word], *arguments)


class TinyModel(CliTest):
    def setUp(self):
        super().setUp()
        self.model = tiny_model(self.folder)
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)

    def quantize(self, *options, name="engine"):
        engine = self.folder / name
        self.ok("quantize", self.model, "--calib", self.text, "--calib-samples", 8, "--calib-length", 64,
                "--group-size", 32, *options, "-o", engine)
        return engine

    def test_two_level_scales_are_quantized_told_and_run(self):
        for mode in ("rtn", "awq", "auto"):
            with self.subTest(mode):
                engine = self.quantize("--mode", mode, "--scheme", "w4a8", "--two-level", name=f"two-level-{mode}")
                self.assertIn("w4a8-g32-two-level", self.ok("inspect", engine))
                answer = self.json("run", engine, "--prompt", "Once", "--max-tokens", 8, "--temperature", 0, "--ignore-eos")
                self.assertEqual(len(answer["token_ids"]), 8)
        self.refused(3, ["two-level", "w4a8", "w4a16"], "quantize", self.model, "--scheme", "w4a16", "--mode", "rtn",
                     "--two-level", "-o", self.folder / "refused")
        self.refused(3, ["--two-level", "w4a8"], "quantize", self.model, "--scheme", "mixed-a8", "--mode", "auto",
                     "--two-level", "-o", self.folder / "refused")
        self.assertFalse((self.folder / "refused").exists())

    def test_tokenize_gives_the_ids(self):
        self.assertEqual(self.json("tokenize", self.model, "--text", "Hi</s>"), {"ids": [76, 109, 2]})

    def test_greedy_runs_repeat_and_report(self):
        arguments = ["run", self.model, "--prompt", "Once upon", "--max-tokens", 12, "--temperature", 0, "--ignore-eos"]
        first, second = self.json(*arguments), self.json(*arguments)
        self.assertEqual(first["token_ids"], second["token_ids"])
        self.assertEqual(len(first["token_ids"]), 12)
        self.assertEqual(len(first["prompt_token_ids"]), len("Once upon"))
        self.assertEqual(first["finish_reason"], "length")
        for key in ("load_s", "prefill_tokens_per_s", "decode_tokens_per_s"):
            self.assertGreater(first["timings"][key], 0)
        self.assertGreater(first["peak_memory_bytes"], 1 << 20)

    def test_a_seed_repeats_what_is_sampled(self):
        arguments = ["run", self.model, "--prompt", "x", "--max-tokens", 24, "--temperature", 1, "--ignore-eos"]
        self.assertEqual(self.json(*arguments, "--seed", 7)["token_ids"], self.json(*arguments, "--seed", 7)["token_ids"])
        self.assertNotEqual(self.json(*arguments, "--seed", 7)["token_ids"],
                            self.json(*arguments, "--seed", 8)["token_ids"])

    def test_text_is_streamed_to_stdout_and_is_that_of_json(self):
        arguments = ["run", self.model, "--prompt", "Once upon", "--max-tokens", 12, "--temperature", 0, "--ignore-eos"]
        plain = self.whit(*arguments)
        self.assertEqual(plain.stdout.decode(), self.json(*arguments)["text"] + "\n")
        self.assertIn(b"prompt tokens", plain.stderr)

    def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(self):
        arguments = ["run", self.model, "--prompt", "x", "--max-tokens", 24, "--temperature", 0, "--ignore-eos"]
        text = self.json(*arguments)["text"]
        stop = text[len(text) // 2]
        stopped = self.json(*arguments, "--stop", stop)
        self.assertEqual(stopped["finish_reason"], "stop")
        self.assertEqual(stopped["text"], text[:text.index(stop)])

    def test_max_tokens_ends_at_the_context(self):
        result = self.json("run", self.model, "--prompt", "x" * 20, "--max-tokens", 1000, "--ctx-size", 32,
                           "--temperature", 0, "--ignore-eos")
        self.assertEqual(len(result["token_ids"]), 12)
        self.assertEqual(result["finish_reason"], "length")
        self.refused(2, ["40", "32"], "run", self.model, "--prompt", "x" * 40, "--ctx-size", 32)

    def test_chat_goes_through_the_template_and_cannot_be_forged(self):
        result = self.json("run", self.model, "--chat", "--prompt", "a</s>", "--system", "s", "--max-tokens", 2)
        ids = result["prompt_token_ids"]
        self.assertEqual(ids.count(3), 3)  # system, user, assistant
        self.assertEqual(ids.count(2), 2)  # not the user's

    def test_a_conversation_reads_lines_until_exit(self):
        result = self.whit("chat", self.model, "--max-tokens", 4, "--temperature", 0, stdin=None,
                           input=b"hello\n/what\n/reset\nagain\n/exit\nnever\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(b"/what is not a command", result.stderr)
        self.assertEqual(result.stderr.count(b"tokens at"), 2)

    def test_ctrl_c_stops_an_answer_and_not_the_conversation(self):
        process = subprocess.Popen([str(WHIT), "chat", str(self.model), "--max-tokens", "400", "--ignore-eos"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(b"again\n", timeout=60)
        self.assertEqual(process.returncode, 0, message)
        self.assertIn(b"cancelled", message)
        self.assertEqual(message.count(b"tokens at"), 2)

    def test_engines_of_every_scheme_run_and_say_what_they_are(self):
        for mode, scheme in [("rtn", "w8a16"), ("rtn", "bf16"), ("awq", "w4a16"), ("awq", "w4a8"),
                             ("smoothquant", "w8a8"), ("rtn", "fp8"), ("awq", "fp8"), ("awq", "w4afp8")]:
            with self.subTest(mode=mode, scheme=scheme):
                engine = self.quantize("--mode", mode, "--scheme", scheme, name=f"{mode}-{scheme}")
                about = self.json("inspect", engine)
                self.assertEqual((about["engine"]["mode"], about["engine"]["scheme_name"]), (mode, scheme))
                self.assertIn("q_proj", self.ok("inspect", engine, "--kernels"))
                answer = self.json("run", engine, "--chat", "--prompt", "x", "--max-tokens", 4, "--ignore-eos")
                self.assertEqual(len(answer["token_ids"]), 4)
                scores = self.json("eval", engine, "--text", self.text, "--ctx-size", 64, "--reference", self.model)
                # int4 costs a random model much, and e4m3, with three bits of fraction, more than int8; chance would agree on
                # 1 token in 320.
                self.assertGreater(scores["top1_agreement"], 0.3 if scheme.startswith("w4") else 0.7 if scheme == "fp8" else 0.8)
                self.assertEqual(self.whit("doctor", engine).returncode, 0)

    def test_static_activations_and_alpha_are_applied(self):
        engine = self.quantize("--mode", "smoothquant", "--activations", "static", "--alpha", "0.5")
        about = self.json("inspect", engine)["engine"]
        self.assertFalse(about["scheme"]["input_activations"]["dynamic"])
        engine = self.quantize("--mode", "smoothquant", "--scheme", "fp8", "--activations", "static", name="fp8-static")
        about = self.json("inspect", engine)["engine"]["scheme"]
        self.assertEqual((about["weights"]["type"], about["input_activations"]["type"]), ("float", "float"))
        scores = self.json("eval", engine, "--text", self.text, "--ctx-size", 64, "--reference", self.model)
        self.assertGreater(scores["top1_agreement"], 0.7)

    def test_the_models_own_text_calibrates_the_same_way_each_time(self):
        digests = []
        for name in ("a", "b"):
            self.ok("quantize", self.model, "--calib-samples", 6, "--calib-length", 48, "--group-size", 32, "--seed", 3,
                    "--threads", 1 + (name == "b"), "-o", self.folder / name)
            record = self.json("inspect", self.folder / name)["engine"]["calibration"]
            self.assertEqual((record["source"], record["samples"], record["length"], record["seed"]), ("self", 6, 48, 3))
            digests.append(record["digest"])
        self.assertEqual(digests[0], digests[1])

    def test_build_keeps_an_engine_and_mends_a_damaged_one(self):
        arguments = ["build", self.model, "--mode", "rtn", "--scheme", "w8a16"]
        built = self.json(*arguments)
        engine = self.cache / "whit" / "engines"
        self.assertIn(str(engine), built["output"])
        self.assertTrue(self.json(*arguments)["reused"])
        self.assertEqual(self.json("inspect", built["output"])["engine"]["quantized_on"], {"backend": "cpu"})
        weights = next(engine.glob("*/weights.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1])
        self.assertNotIn("reused", self.json(*arguments))
        self.ok("run", built["output"], "--prompt", "x", "--max-tokens", 2)
        self.assertNotEqual(self.json(*arguments, "--head", "bf16")["output"], built["output"])

    def test_evaluation_is_that_of_the_reference_itself(self):
        scores = self.json("eval", self.model, "--text", self.text, "--ctx-size", 64, "--reference", self.model)
        self.assertAlmostEqual(scores["kld"], 0, delta=1e-6)
        self.assertEqual((scores["ppl_ratio"], scores["top1_agreement"]), (1, 1))
        self.assertEqual(self.json("eval", self.model, "--text", self.text, "--ctx-size", 64, "--max-windows", 2)["tokens"],
                         126)

    def test_bench_prints_a_row_for_each_test(self):
        rows = self.json("bench", self.model, "-p", 32, "-n", 4, "-b", "1,3", "-r", 2)["rows"]
        self.assertEqual([(row["test"], row["batch"]) for row in rows], [("pp32", 1), ("tg4", 1), ("tg4", 3)])
        self.assertTrue(all(row["tokens_per_s"] > 0 for row in rows))
        self.assertIn("| tg4 b3 |", self.ok("bench", self.model, "-p", "0", "-n", 4, "-b", 3, "-r", 1))

    def test_compare_builds_measures_and_advises(self):
        existing = self.quantize("--mode", "rtn", "--scheme", "w8a16")
        arguments = ["compare", self.model, existing, "--recipes", "awq:w4a16,smoothquant:w8a8", "--group-size", 32,
                     "--calib", self.text, "--calib-samples", 8, "--calib-length", 64, "-o", self.folder / "engines",
                     "--ctx-size", 64, "--max-windows", 4, "-r", 1]
        result = self.json(*arguments)
        self.assertEqual([row["name"] for row in result["rows"]],
                         ["original", "awq w4a16", "smoothquant w8a8", str(existing)])
        for row in result["rows"]:
            self.assertGreater(row["pp512"], 0)
            self.assertGreater(row["peak_memory_bytes"], 0)
        self.assertLess(result["rows"][2]["kld"], result["rows"][1]["kld"])
        self.assertEqual(result["choose"]["size"], "awq w4a16")
        self.assertIn("Choose for accuracy", self.ok(*arguments, "--reuse"))
        self.ok("run", self.folder / "engines" / "awq-w4a16", "--prompt", "x", "--max-tokens", 2)

    def test_convert_writes_a_directory_that_computes_the_same(self):
        self.ok("convert", self.model, self.folder / "copy")
        arguments = ["--prompt", "Once", "--max-tokens", 8, "--temperature", 0, "--ignore-eos"]
        self.assertEqual(self.json("run", self.folder / "copy", *arguments)["token_ids"],
                         self.json("run", self.model, *arguments)["token_ids"])

    def test_convert_writes_an_engine_for_programs_that_know_none(self):
        self.ok("quantize", self.model, "--mode", "rtn", "--scheme", "w8a16", "-o", self.folder / "engine")
        self.ok("convert", self.folder / "engine", self.folder / "copy")
        arguments = ["--prompt", "Once", "--max-tokens", 8, "--temperature", 0, "--ignore-eos"]
        self.assertEqual(self.json("run", self.folder / "copy", *arguments)["token_ids"],
                         self.json("run", self.folder / "engine", *arguments)["token_ids"])

    def test_convert_writes_a_quantized_checkpoint_that_answers_as_the_engine(self):
        self.ok("quantize", self.model, "--mode", "rtn", "--scheme", "w8a8", "--head", "bf16", "-o", self.folder / "engine")
        self.ok("convert", self.folder / "engine", self.folder / "copy", "--format", "compressed-tensors", "--dtype", "f32")
        arguments = ["--prompt", "Once", "--max-tokens", 8, "--temperature", 0, "--ignore-eos"]
        self.assertEqual(self.json("run", self.folder / "copy", *arguments)["token_ids"],
                         self.json("run", self.folder / "engine", *arguments)["token_ids"])
        self.refused(3, ["q_proj", "int4", "compressed-tensors"], "convert", self.folder / "engine", self.folder / "awq", "--format", "awq")
        self.refused(3, ["copy", "quantized already"], "quantize", self.folder / "copy", "--mode", "rtn", "-o", self.folder / "twice")
        for name in ("awq", "twice"):
            self.assertFalse((self.folder / name).exists())

    def test_what_is_tuned_is_what_later_runs_use(self):
        engine = self.quantize("--mode", "rtn", "--scheme", "w8a8")
        bench = ["bench", engine, "-p", "0", "-n", 4, "-r", 1]
        self.assertNotIn("tuning", self.json("doctor", engine))
        tuned = self.json("bench", engine, "--tune")
        self.assertEqual(self.json("doctor", engine)["tuning"]["chosen"], tuned["chosen"])
        file = Path(tuned["file"])
        stored = json.loads(file.read_text())
        stored["trials"].append({"isa": "portable", "threads": 1, "prefill_tokens_per_s": 1, "decode_tokens_per_s": 1})
        stored["chosen"] = len(stored["trials"]) - 1
        file.write_text(json.dumps(stored))
        used = self.json(*bench)
        self.assertEqual((used["backend"], used["threads"]), ("CPU portable", 1))
        self.assertEqual(self.json(*bench, "--threads", 2)["threads"], 2)
        file.write_text("{")
        result = self.whit("run", engine, "--prompt", "x", "--max-tokens", 1)
        self.assertEqual(result.returncode, 0)
        self.assertIn(b"ignored", result.stderr)
        self.refused(2, ["--tune"], "bench", engine, "--tune", "--threads", 1)
        self.refused(2, ["engine"], "bench", self.model, "--tune")

    def test_doctor_says_what_fails_and_how_to_mend_it(self):
        self.assertTrue(self.json("doctor", self.model)["passed"])
        (self.model / "tokenizer.json").unlink()
        result = self.whit("doctor", self.model)
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stdout.decode(), r"FAILED +tokenizer .*tokenizer\.json")


@unittest.skipUnless(os.environ.get("WHIT_SMOL_GGUF"), "WHIT_SMOL_GGUF does not name the default model")
class DefaultModel(CliTest):
    def test_it_answers_knowingly(self):
        result = self.json("run", os.environ["WHIT_SMOL_GGUF"], "--chat", "--prompt", "What is the capital of France?",
                           "--max-tokens", 16, "--temperature", 0)
        self.assertIn("Paris", result["text"])

    def test_a_plain_engine_of_it_agrees_with_it(self):
        model, text = os.environ["WHIT_SMOL_GGUF"], self.folder / "text.txt"
        text.write_text(TEXT)
        self.ok("quantize", model, "--mode", "rtn", "--scheme", "w8a16", "-o", self.folder / "engine")
        scores = self.json("eval", self.folder / "engine", "--text", text, "--ctx-size", 128, "--reference", model)
        self.assertLess(scores["kld"], 0.01)


class Output(CliTest):
    def test_nothing_but_the_document_is_printed_with_json_and_no_progress_without_a_terminal(self):
        model = tiny_model(self.folder)
        result = self.whit("quantize", model, "--mode", "rtn", "--scheme", "w8a16", "-o", self.folder / "e", "--json")
        json.loads(result.stdout)
        self.assertEqual(result.stderr, b"")

    def test_a_full_standard_output_is_an_error(self):
        model = tiny_model(self.folder)
        with open("/dev/full", "wb") as full:
            result = subprocess.run([str(WHIT), "inspect", str(model)], stdout=full, stderr=subprocess.PIPE, check=False)
        self.assertEqual(result.returncode, 4, result.stderr)


if __name__ == "__main__":
    unittest.main()
