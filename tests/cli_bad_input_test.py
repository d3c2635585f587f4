"""Bad input to the program: a clear paragraph naming file, tensor and remedy, an exit status, and nothing half-written."""
import json
import os
import resource
import signal
import struct
import subprocess
import time
import unittest

from cli_support import WHIT, CliTest, edit_json, edit_safetensors, tiny_model

TEXT = "It was a quiet morning, and the harbour lay still under a thin mist. " * 12
FAST = ["--mode", "rtn", "--scheme", "w8a16"]
DAMAGED, SYSTEM, USAGE, INTERRUPTED = 3, 4, 2, 130


class BadInput(CliTest):
    def setUp(self):
        super().setUp()
        self.model = tiny_model(self.folder)
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)

    def refuse_quantizing(self, status, words, *options, model=None, **run):
        """Quantizing must fail and leave the folder as it was."""
        before = self.files()
        self.refused(status, words, "quantize", model or self.model, *(options or FAST), "-o", self.folder / "out", **run)
        self.assertEqual(self.files(), before)


class Checkpoints(BadInput):
    def setUp(self):
        super().setUp()
        self.weights = self.model / "model.safetensors"

    def test_a_model_that_is_not_there(self):
        self.refuse_quantizing(DAMAGED, ["nowhere", "does not exist", ".gguf"], model=self.folder / "nowhere")

    def test_an_empty_directory(self):
        (self.folder / "empty").mkdir()
        self.refuse_quantizing(DAMAGED, ["empty", "config.json"], model=self.folder / "empty")

    def test_weights_that_are_not_there(self):
        self.weights.unlink()
        self.refuse_quantizing(DAMAGED, ["model.safetensors"])

    def test_a_shard_that_is_not_there(self):
        model = tiny_model(self.folder, "llama_untied")
        (model / "model-00002-of-00002.safetensors").unlink()
        self.refuse_quantizing(DAMAGED, ["model-00002-of-00002.safetensors"], model=model)

    def test_truncated_weights(self):
        self.weights.write_bytes(self.weights.read_bytes()[:-100])
        self.refuse_quantizing(DAMAGED, ["model.safetensors"])

    def test_a_header_of_absurd_size(self):
        self.weights.write_bytes(struct.pack("<Q", 1 << 60) + self.weights.read_bytes()[8:])
        self.refuse_quantizing(DAMAGED, ["model.safetensors"])

    def test_a_shape_that_contradicts_the_config(self):
        edit_json(self.model / "config.json", lambda config: config.update(intermediate_size=72))
        self.refuse_quantizing(DAMAGED, ["mlp", "72", "68"])

    def test_an_unknown_dtype(self):
        edit_safetensors(self.weights, lambda header, data: header["model.norm.weight"].update(dtype="F4_E2M1"))
        self.refuse_quantizing(DAMAGED, ["model.safetensors", "model.norm.weight", "F4_E2M1"])

    def test_a_weight_that_is_not_a_number(self):
        name = "model.layers.1.mlp.up_proj.weight"

        def put_nan(header, data):
            begin = header[name]["data_offsets"][0]
            data[begin:begin + 2] = struct.pack("<H", 0x7FC0)
        edit_safetensors(self.weights, put_nan)
        self.refuse_quantizing(DAMAGED, [name, "NaN"])
        self.refused(DAMAGED, [name, "NaN"], "run", self.model, "--prompt", "x", "--max-tokens", 1)

    def test_a_tensor_that_is_not_there(self):
        name = "model.layers.0.self_attn.k_proj.weight"
        edit_safetensors(self.weights, lambda header, data: header.update({"other": header.pop(name)}))
        self.refuse_quantizing(DAMAGED, [name])

    def test_an_architecture_that_is_not_supported(self):
        edit_json(self.model / "config.json", lambda config: config.update(architectures=["MambaForCausalLM"]))
        self.refuse_quantizing(DAMAGED, ["MambaForCausalLM", "LlamaForCausalLM"])

    def test_a_config_that_is_not_json(self):
        (self.model / "config.json").write_text("{\"architectures\": [")
        self.refuse_quantizing(DAMAGED, ["config.json"])

    def test_a_tokenizer_of_another_model(self):
        vocabulary = json.loads((self.model / "tokenizer.json").read_text())
        vocabulary["model"]["vocab"] |= {f"extra{i}": 260 + i for i in range(100)}
        (self.model / "tokenizer.json").write_text(json.dumps(vocabulary))
        self.refused(DAMAGED, ["tokenizer", "360", "320"], "run", self.model, "--prompt", "x")

    def test_a_model_without_tokenizer(self):
        (self.model / "tokenizer.json").unlink()
        self.refused(DAMAGED, ["tokenizer.json"], "run", self.model, "--prompt", "x")

    def test_a_model_without_chat_template(self):
        (self.model / "tokenizer_config.json").write_text("{}")
        for command in (["run", self.model, "--chat", "--prompt", "x"], ["chat", self.model]):
            self.refused(DAMAGED, ["chat template"], *command)

    def test_a_gguf_file_that_is_none(self):
        (self.folder / "model.gguf").write_bytes(b"GGUF" + bytes(100))
        self.refuse_quantizing(DAMAGED, ["model.gguf"], model=self.folder / "model.gguf")


class Requests(BadInput):
    def test_combinations_that_make_no_sense(self):
        for options, status, words in [
            (["--mode", "smoothquant", "--scheme", "w4a16"], DAMAGED, ["smoothquant", "w4a16", "w8a8"]),
            (["--mode", "awq", "--scheme", "bf16"], DAMAGED, ["awq", "bf16"]),
            (["--mode", "awq", "--alpha", "0.5"], USAGE, ["--alpha"]),
            (["--mode", "rtn", "--scheme", "w4a8", "--activations", "static"], DAMAGED, ["static", "w8a8"]),
        ]:
            with self.subTest(options=options):
                self.refuse_quantizing(status, words, *options)

    def test_groups_that_a_models_width_cannot_hold(self):
        model = tiny_model(self.folder, "llama_rope_linear")  # intermediate_size 31
        self.refuse_quantizing(DAMAGED, ["down_proj", "31", "32"], "--mode", "rtn", "--scheme", "w4a16", model=model)

    def test_calibration_text_that_is_missing_empty_or_short(self):
        (self.folder / "empty.txt").write_text(" \n\n")
        (self.folder / "lines.jsonl").write_text('{"words": "a"}\n')
        (self.folder / "short.txt").write_text("too short")
        for calib, length, status, words in [
            ("nowhere.txt", 64, DAMAGED, ["nowhere.txt", "does not exist", "self"]),
            ("empty.txt", 64, USAGE, ["empty.txt", "empty"]),
            ("lines.jsonl", 64, DAMAGED, ["lines.jsonl:1", "text"]),
            ("short.txt", 64, USAGE, ["short.txt", "--calib-length"]),
            ("self", 4096, USAGE, ["4096", "512"]),
        ]:
            with self.subTest(calib=calib):
                self.refuse_quantizing(status, words, "--calib", calib, "--calib-length", length, "--group-size", 32)

    def test_an_output_that_is_something_else(self):
        (self.folder / "out").mkdir()
        (self.folder / "out" / "thesis.txt").write_text("precious")
        self.refuse_quantizing(USAGE, ["out", "no engine"])
        self.refused(USAGE, ["out"], "convert", self.model, self.folder / "out")
        self.assertEqual((self.folder / "out" / "thesis.txt").read_text(), "precious")

    def test_prompts_and_texts_without_content(self):
        (self.folder / "empty.txt").write_text("")
        self.refused(USAGE, ["prompt"], "run", self.model, "--prompt", "")
        self.refused(USAGE, ["empty.txt"], "eval", self.model, "--text", self.folder / "empty.txt")
        self.refused(DAMAGED, ["nowhere.txt"], "eval", self.model, "--text", self.folder / "nowhere.txt")
        self.refused(USAGE, ["--system", "--chat"], "run", self.model, "--prompt", "x", "--system", "y")
        self.refused(USAGE, ["600", "512"], "eval", self.model, "--text", self.text, "--ctx-size", 600)

    def test_a_gpu_that_is_not_there(self):
        environment = self.environment | {"CUDA_VISIBLE_DEVICES": ""}
        self.refused(DAMAGED, ["--backend cpu"], "run", self.model, "--prompt", "x", "--backend", "cuda", env=environment)
        self.refused(DAMAGED, ["--backend cpu"], "bench", self.model, "--kernels", "--backend", "cuda", env=environment)
        self.refused(DAMAGED, ["--backend cpu"], "calibrate", self.model, "--backend", "cuda", "--calib", self.text, "-o",
                     self.folder / "s", env=environment)
        for mode in ("awq", "auto"):
            self.refused(DAMAGED, ["--backend cpu"], "quantize", self.model, "--backend", "cuda", "--mode", mode, "-o",
                         self.folder / "e", env=environment)

    def test_models_that_cannot_be_compared(self):
        other = tiny_model(self.folder, "qwen2")
        self.refused(USAGE, ["vocabulary"], "eval", self.model, "--text", self.text, "--ctx-size", 64, "--reference", other)


class Engines(BadInput):
    def setUp(self):
        super().setUp()
        self.engine = self.folder / "engine"
        self.ok("quantize", self.model, *FAST, "-o", self.engine)

    def test_a_damaged_engine(self):
        weights = self.engine / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        self.refused(DAMAGED, ["weights.safetensors", "rebuild"], "run", self.engine, "--prompt", "x")

    def test_an_engine_of_a_newer_format(self):
        edit_json(self.engine / "engine.json", lambda manifest: manifest.update(format_version=99))
        self.refused(DAMAGED, ["engine.json", "99", "newer"], "run", self.engine, "--prompt", "x")

    def test_an_engine_is_not_quantized_again(self):
        self.refuse_quantizing(DAMAGED, ["quantized already"], model=self.engine)

    def test_a_failed_run_leaves_the_older_engine(self):
        short = self.folder / "short.txt"
        short.write_text("short")
        before = self.files()
        self.refused(USAGE, ["short"], "quantize", self.model, "--calib", short, "-o", self.engine)
        self.assertEqual(self.files(), before)
        self.ok("run", self.engine, "--prompt", "x", "--max-tokens", 1)


class Interruptions(BadInput):
    def test_a_full_disk_leaves_nothing(self):
        # A limit of the file size stands in for a full disk: write() fails in the same place.
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
        before = self.files()
        self.refuse_quantizing(SYSTEM, ["weights.safetensors"], preexec_fn=limit)
        self.refused(SYSTEM, ["model.safetensors"], "convert", self.model, self.folder / "copy", preexec_fn=limit)
        self.assertEqual(self.files(), before)

    def test_an_output_place_that_cannot_be_written(self):
        (self.folder / "file").write_text("")
        before = self.files()
        self.refused(SYSTEM, ["file"], "quantize", self.model, *FAST, "-o", self.folder / "file" / "out")
        self.assertEqual(self.files(), before)

    def interrupted(self, *arguments):
        before = self.files()
        for number in (signal.SIGINT, signal.SIGTERM):
            process = subprocess.Popen([str(WHIT), *map(str, arguments)], cwd=self.folder, env=self.environment,
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(0.4)
            self.assertIsNone(process.poll(), "it ended before it could be interrupted")
            process.send_signal(number)
            out, message = process.communicate(timeout=60)
            self.assertEqual(process.returncode, INTERRUPTED, message)
            self.assertIn(b"interrupted", message)
            self.assertEqual(out, b"")
            self.assertEqual(self.files(), before)

    def test_ctrl_c_while_the_model_writes_calibration_text_leaves_nothing(self):
        self.interrupted("quantize", self.model, "--calib-samples", 20000, "--calib-length", 256, "-o", "out")

    def test_ctrl_c_while_quantizing_leaves_nothing(self):
        self.text.write_text(TEXT * 2000)
        self.interrupted("quantize", self.model, "--calib", self.text, "--calib-samples", 10000, "--calib-length", 64,
                         "-o", "out")

    def test_ctrl_c_while_comparing_leaves_nothing(self):
        self.interrupted("compare", self.model, "--recipes", "rtn:w8a16,awq:w4a16", "--calib-samples", 20000, "-o", "out")

    def test_ctrl_c_ends_an_evaluation(self):
        self.text.write_text(TEXT * 3000)
        self.interrupted("eval", self.model, "--text", self.text, "--ctx-size", 512)


if __name__ == "__main__":
    unittest.main()
