"""Calibration data, statistics, resuming and quality limits of the program, on a tiny model."""
import json
import signal
import subprocess
import time
import unittest

from cli_support import WHIT, CliTest, tiny_model

USAGE, DAMAGED, UNSUPPORTED, LIMIT = 2, 3, 3, 5
TEXT = "It was a quiet morning, and the harbour lay still under a thin mist. " * 40


class QuantizeTools(CliTest):
    def setUp(self):
        super().setUp()
        self.model = tiny_model(self.folder)
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)
        self.chat = self.folder / "chat.jsonl"
        self.chat.write_text("".join(json.dumps({"messages": [
            {"role": "user", "content": f"How many boats are {i}?"}, {"role": "assistant", "content": "As many as yesterday."}]})
            + "\n" for i in range(40)))

    def sizes(self, samples=8):
        return ["--calib-samples", samples, "--calib-length", 64]

    def quantize(self, name, *options, calib=None):
        self.ok("quantize", self.model, "--calib", calib or self.text, *self.sizes(), "--group-size", 32, *options,
                "-o", self.folder / name)
        return self.folder / name

    def content(self, folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def content_without_kv_layouts(self, folder):
        """Those are measured on the data itself; statistics cannot give them."""
        content = self.content(folder)
        content["engine.json"] = json.loads(content["engine.json"])
        content["engine.json"].pop("kv_cache", None)
        return content

    def record(self, engine):
        return self.json("inspect", engine)["engine"]


class CalibrationData(QuantizeTools):
    def test_a_mixture_is_recorded_by_part(self):
        self.ok("quantize", self.model, "--calib", f"{self.text}:3", "--calib", f"{self.chat}:1", *self.sizes(),
                "--group-size", 32, "-o", "engine")
        parts = self.record("engine")["calibration"]["parts"]
        self.assertEqual([(part["source"], part["samples"]) for part in parts], [("text.txt", 6), ("chat.jsonl", 2)])

    def test_statistics_give_the_engine_of_their_data(self):
        self.ok("calibrate", self.model, "--calib", self.text, *self.sizes(), "-o", "a.stats")
        direct = self.quantize("direct", "--scheme", "w4a8")
        self.ok("quantize", self.model, "--stats", "a.stats", "--scheme", "w4a8", "--group-size", 32, "-o", "other")
        self.assertEqual(self.content_without_kv_layouts(self.folder / "other"), self.content_without_kv_layouts(direct))

    def test_merged_statistics_name_both_sets(self):
        self.ok("calibrate", self.model, "--calib", self.text, *self.sizes(), "-o", "a.stats")
        self.ok("calibrate", self.model, "--calib", self.chat, *self.sizes(), "-o", "b.stats")
        about = self.json("calibrate", self.model, "--merge", "a.stats", "b.stats", "-o", "c.stats")
        self.assertEqual(about["tokens"], 2 * 8 * 64)
        self.ok("quantize", self.model, "--stats", "c.stats", "--group-size", 32, "-o", "engine")
        self.assertEqual(self.record("engine")["calibration"]["source"], "text.txt + chat.jsonl")
        self.refused(USAGE, ["twice"], "calibrate", self.model, "--merge", "a.stats", "c.stats", "-o", "d.stats")
        self.refused(UNSUPPORTED, ["auto", "--calib"], "quantize", self.model, "--stats", "c.stats", "--mode", "auto",
                     "--group-size", 32, "-o", "auto")
        self.assertFalse((self.folder / "d.stats").exists())

    def test_damaged_or_foreign_statistics_are_refused(self):
        self.ok("calibrate", self.model, "--calib", self.text, *self.sizes(), "-o", "a.stats")
        raw = bytearray((self.folder / "a.stats").read_bytes())
        raw[len(raw) // 2] ^= 1
        (self.folder / "bad.stats").write_bytes(raw)
        self.refused(DAMAGED, ["bad.stats", "digest"], "quantize", self.model, "--stats", "bad.stats", "-o", "x")
        other = tiny_model(self.folder, "qwen2")
        self.refused(USAGE, ["a.stats", "another model"], "quantize", other, "--stats", "a.stats", "--group-size", 32,
                     "-o", "x")
        self.refused(DAMAGED, ["whit calibrate"], "quantize", self.model, "--stats", self.model / "model.safetensors",
                     "--group-size", 32, "-o", "x")

    def test_too_few_tokens_are_warned_of(self):
        result = self.whit("quantize", self.model, "--calib", self.text, "--calib-samples", 1, "--calib-length", 16,
                           "--group-size", 32, "-o", "engine")
        self.assertEqual(result.returncode, 0)
        self.assertIn(b"more channels than calibration tokens", result.stderr)
        self.assertIn(b"effective calibration tokens", result.stderr)


class Resuming(QuantizeTools):
    def test_a_killed_run_goes_on_to_the_same_bytes(self):
        self.text.write_text(TEXT * 60)
        arguments = ["quantize", self.model, "--calib", self.text, "--calib-samples", 1000, "--calib-length", 128,
                     "--group-size", 32, "--mode", "awq", "--scheme", "w4a8"]
        self.ok(*arguments, "-o", "whole")
        for number in (signal.SIGKILL, signal.SIGINT):
            with self.subTest(number=number):
                process = subprocess.Popen([str(WHIT), *map(str, arguments), "-o", "engine"], cwd=self.folder,
                                           env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                while not list(self.folder.glob(".engine.resume-*/checkpoint.json")):
                    self.assertIsNone(process.poll(), "it ended before it could be killed")
                    time.sleep(0.002)
                process.send_signal(number)
                _, message = process.communicate(timeout=60)
                self.assertNotEqual(process.returncode, 0)
                if number == signal.SIGINT:
                    self.assertIn(b"the same command goes on", message)
                self.assertFalse((self.folder / "engine").exists())
                self.assertGreaterEqual(self.json(*arguments, "-o", "engine")["resumed_layers"], 1)
                self.assertEqual(self.content(self.folder / "engine"), self.content(self.folder / "whole"))
                self.assertEqual(list(self.folder.glob(".engine*")), [])
                for path in (self.folder / "engine").iterdir():
                    path.unlink()
                (self.folder / "engine").rmdir()


class MixedPrecision(QuantizeTools):
    def mixed(self, name, *options):
        return self.whit("quantize", self.model, "--mode", "auto", "--scheme", "mixed", "--calib", self.text, *self.sizes(16),
                         "--group-size", 32, "--sensitivity-tokens", 64, *options, "-o", name)

    def test_states_the_study_in_advance_and_prints_the_front(self):
        result = self.mixed("engine", "--target-bpw", 6)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr.decode(), "sensitivity study: every group of linears in 5 schemes on 64 held-out tokens, "
                                                 r"about \d+:\d\d")
        rows = [line.split("|")[1:-1] for line in result.stdout.decode().splitlines() if line.startswith("|")][2:]
        bits, klds = [float(row[0]) for row in rows], [float(row[1]) for row in rows]
        self.assertEqual([row[4].strip() for row in rows], [""] * (len(rows) - 1) + ["chosen"])
        self.assertEqual(bits[:-1], sorted(bits[:-1]))
        self.assertEqual(klds[:-1], sorted(klds[:-1], reverse=True))
        self.assertLessEqual(bits[-1], 6)
        schemes = json.loads((self.folder / "engine/engine.json").read_text())["linears"]
        self.assertGreater(len({scheme for name, scheme in schemes.items() if "layers" in name}), 1)

    def test_a_dry_run_counts_the_study(self):
        result = self.mixed("engine", "--target-bpw", 6, "--dry-run", "--json")
        about = json.loads(result.stdout)
        for parts in ("memory", "time"):
            self.assertTrue(any("sensitivity study" in part["name"] for part in about[parts]), about)

    def test_the_thread_count_changes_no_byte(self):
        for threads in (1, 2):
            self.assertEqual(self.mixed(f"on{threads}", "--target-bpw", 6, "-t", threads).returncode, 0)
        one, two = (self.content(self.folder / f"on{threads}") for threads in (1, 2))
        self.assertEqual(one["weights.safetensors"], two["weights.safetensors"])

    def test_a_speed_is_reached_or_refused_with_what_can_be_reached(self):
        result = self.mixed("engine", "--target-decode-tps", 1)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(b"decode t/s", result.stdout)
        refused = self.mixed("fast", "--target-decode-tps", 1e12)
        self.assertEqual(refused.returncode, USAGE)
        self.assertIn(b"tokens per second", refused.stderr)
        self.assertFalse((self.folder / "fast").exists())

    def test_an_increase_of_perplexity_bounds_the_plan(self):
        result = self.mixed("engine", "--max-ppl-increase", "60%", "--eval-windows", 1)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(b"chosen", result.stdout)


class QualityLimits(QuantizeTools):
    def test_an_engine_beyond_a_limit_is_not_written(self):
        before = self.files()
        for limit in (["--max-kld", "0"], ["--max-ppl-increase", "0%", "--max-kld", "0"]):
            self.refused(LIMIT, ["beyond the limit"], "quantize", self.model, "--calib", self.text, *self.sizes(),
                         "--group-size", 32, *limit, "-o", "engine")
        self.assertEqual(self.files(), before)

    def test_figures_are_measured_recorded_and_asked_for_by_serve(self):
        engine = self.quantize("engine", "--max-ppl-increase", "50%", "--max-kld", "10", "--eval-windows", "2")
        quality = self.record(engine)["quality"]
        self.assertEqual(quality["text"], "built-in")
        self.assertGreater(quality["kld"], 0)
        self.assertEqual(quality["tokens"], 2 * (quality["ctx_size"] - 1))
        self.assertIn("kld", self.ok("inspect", engine))
        self.refused(LIMIT, ["--max-kld"], "serve", engine, "--port", 0, "--max-kld", quality["kld"] / 2)

    def test_an_engine_without_figures_is_measured_later(self):
        engine = self.quantize("engine")
        self.assertEqual(self.record(engine)["quality"], {})
        self.refused(DAMAGED, ["--record"], "serve", engine, "--port", 0, "--max-kld", 5)
        self.ok("eval", engine, "--reference", self.model, "--record", "--max-windows", 1)
        self.assertGreater(self.record(engine)["quality"]["kld"], 0)
        self.refused(LIMIT, ["--max-kld"], "serve", engine, "--port", 0, "--max-kld", 0)

    def test_wrong_limits_are_refused(self):
        for limit in (["--max-kld", "-1"], ["--max-ppl-increase", "much"], ["--max-ppl-increase", "-5%"]):
            self.refused(USAGE, [limit[0]], "quantize", self.model, *limit, "-o", "x")


if __name__ == "__main__":
    unittest.main()
