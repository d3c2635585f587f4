"""Engines and requests: generate, generate_async, statistics, files, errors."""
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unittest

import numpy as np

import whit
from support import AWQ, QUICK, ModelTest
from whit.quantization import QuantMode

GREEDY = whit.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


class Requests(ModelTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.llm = whit.LLMEngine.from_pretrained(cls.model, **QUICK | AWQ)
        cls.addClassCleanup(cls.llm.shutdown)

    def test_one_prompt_gives_one_output_and_a_list_gives_a_list(self):
        one = self.llm.generate("Once upon", GREEDY)
        many = self.llm.generate(["Once upon", "x", "Once upon"], GREEDY, use_tqdm=False)
        self.assertEqual(len(one.outputs[0].token_ids), 8)
        self.assertEqual([each.prompt for each in many], ["Once upon", "x", "Once upon"])
        self.assertEqual(many[0].outputs[0].token_ids, one.outputs[0].token_ids)
        self.assertEqual(many[2].outputs[0].token_ids, one.outputs[0].token_ids)
        self.assertTrue(one.finished)
        self.assertEqual(one.outputs[0].finish_reason, "length")

    def test_token_ids_and_numpy_arrays_are_prompts(self):
        ids = self.llm.encode("Once upon")
        text = self.llm.generate("Once upon", GREEDY).outputs[0].token_ids
        self.assertEqual(self.llm.generate(ids, GREEDY).outputs[0].token_ids, text)
        self.assertEqual(self.llm.generate(np.array(ids), GREEDY).outputs[0].token_ids, text)
        self.assertEqual([each.outputs[0].token_ids for each in self.llm.generate([ids, ids], GREEDY)], [text, text])

    def test_the_defaults_are_greedy_and_32_tokens(self):
        params = whit.SamplingParams()
        self.assertEqual(params.max_tokens, 32)
        self.assertTrue(params.greedy)
        self.assertFalse(whit.SamplingParams(top_p=0.9).greedy)
        self.assertFalse(whit.SamplingParams(temperature=1.0).greedy)

    def test_a_seed_repeats_and_n_answers_differ(self):
        params = whit.SamplingParams(max_tokens=12, temperature=1.5, seed=3, n=3, ignore_eos=True)
        first, second = (self.llm.generate("a", params) for _ in range(2))
        self.assertEqual([each.token_ids for each in first.outputs], [each.token_ids for each in second.outputs])
        self.assertEqual(len({tuple(each.token_ids) for each in first.outputs}), 3)
        self.assertEqual([each.index for each in first.outputs], [0, 1, 2])

    def test_logprobs_belong_to_the_logits(self):
        params = whit.SamplingParams(max_tokens=4, temperature=0.0, logprobs=3, prompt_logprobs=2, ignore_eos=True,
                                     return_context_logits=True, return_generation_logits=True)
        request = self.llm.generate("Once", params)
        output = request.outputs[0]
        self.assertEqual(request.context_logits.shape, (len(request.prompt_token_ids), self.llm.config.vocab_size))
        self.assertEqual(output.generation_logits.shape, (4, self.llm.config.vocab_size))
        np.testing.assert_array_equal(request.context_logits[-1], output.generation_logits[0])
        logits = output.generation_logits.astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        for row, token, found in zip(expected, output.token_ids, output.logprobs):
            self.assertAlmostEqual(found[token].logprob, row[token], places=4)
            self.assertEqual(found[token].rank, 1)
            self.assertEqual(set(found), set(np.argsort(-row)[:3]))
        self.assertAlmostEqual(output.cumulative_logprob, sum(row[t] for row, t in zip(expected, output.token_ids)), places=3)
        self.assertEqual(len(output.prompt_logprobs), len(request.prompt_token_ids) - 1)

    def test_stop_texts_and_tokens_end_an_answer(self):
        free = self.llm.generate("Once upon", GREEDY).outputs[0]
        stopped = self.llm.generate("Once upon", whit.SamplingParams(max_tokens=8, ignore_eos=True,
                                                                     stop_token_ids=[free.token_ids[2]])).outputs[0]
        self.assertEqual(stopped.finish_reason, "stop")
        self.assertEqual(stopped.token_ids, free.token_ids[: free.token_ids.index(free.token_ids[2]) + 1])
        biased = whit.SamplingParams(max_tokens=8, ignore_eos=True, logit_bias={4 + ord("A"): 100.0}, stop="AAA")
        output = self.llm.generate("x", biased).outputs[0]
        self.assertEqual((output.finish_reason, output.stop_reason), ("stop", "AAA"))
        biased.include_stop_str_in_output = True
        self.assertEqual(self.llm.generate("x", biased).outputs[0].text, output.text + "AAA")

    def test_the_prompt_can_be_part_of_the_output(self):
        params = whit.SamplingParams(max_tokens=2, exclude_input_from_output=False, ignore_eos=True)
        request = self.llm.generate("Once", params)
        self.assertEqual(request.outputs[0].token_ids[:-2], request.prompt_token_ids)
        self.assertTrue(request.outputs[0].text.startswith("Once"))

    def test_chat_goes_through_the_template(self):
        ids = self.llm.apply_chat_template([{"role": "user", "content": "</s>Hi"}])
        self.assertEqual(self.llm.decode(ids, skip_special_tokens=False), "<|turn|>user\n</s>Hi</s>\n<|turn|>assistant\n")
        self.assertEqual(ids.count(2), 1)  # the one of the template; the user's is plain text
        self.assertEqual(self.llm.chat("</s>Hi", GREEDY).prompt_token_ids, ids)

    def test_a_stream_gives_every_token_and_all_of_the_text(self):
        request = self.llm.generate_async("Once upon", GREEDY, streaming=True)
        text, tokens = "", []
        for state in request:
            text += state.outputs[0].text_diff
            tokens += state.outputs[0].token_ids_diff
        self.assertTrue(request.finished)
        self.assertEqual((text, tokens), (request.outputs[0].text, request.outputs[0].token_ids))

    def test_asyncio_awaits_and_iterates(self):
        expected = self.llm.generate("Once upon", GREEDY).outputs[0].token_ids

        async def stream():
            tokens = []
            async for state in self.llm.generate_async("Once upon", GREEDY):
                tokens += state.outputs[0].token_ids_diff
            return tokens

        async def several():
            awaited = asyncio.gather(*(self.llm.generate_async("Once upon", GREEDY).aresult() for _ in range(3)))
            return await stream(), [each.outputs[0].token_ids for each in await awaited], \
                (await self.llm.generate_async("Once upon", GREEDY)).outputs[0].token_ids

        streamed, gathered, awaited = asyncio.run(several())
        self.assertEqual(streamed, expected)
        self.assertEqual(gathered, [expected] * 3)
        self.assertEqual(awaited, expected)

    def test_asyncio_tasks_stream_together_and_as_they_would_alone(self):
        prompts = ["Once upon"[: 2 + i] for i in range(8)]
        params = whit.SamplingParams(max_tokens=100, ignore_eos=True)
        expected = [self.llm.generate(prompt, params).outputs[0] for prompt in prompts]
        self.llm.get_stats(0)

        async def stream(prompt):
            text, tokens = "", []
            async for state in self.llm.generate_async(prompt, params):
                text += state.outputs[0].text_diff
                tokens += state.outputs[0].token_ids_diff
            return text, tokens

        async def all_of_them():
            return await asyncio.gather(*map(stream, prompts))

        found = asyncio.run(all_of_them())
        self.assertEqual(found, [(each.text, each.token_ids) for each in expected])
        records = self.llm.get_stats()
        self.assertEqual(len(records), 8)
        # The first may have gone far before the last is submitted, but for the most part they run together.
        self.assertGreaterEqual(max(each["batchSize"] for each in records), 4, records)
        self.assertEqual(min(each["generatedTokens"] for each in records), 100)

    def test_a_list_runs_together_and_gives_what_each_prompt_gives_alone(self):
        prompts = [self.llm.encode("Once upon a time")[:i] for i in range(2, 12)]
        params = [whit.SamplingParams(max_tokens=20 + 4 * i, ignore_eos=True, seed=i, temperature=i % 3 / 2) for i in range(10)]
        alone = [self.llm.generate(prompt, each).outputs[0].token_ids for prompt, each in zip(prompts, params)]
        self.llm.get_stats(0)
        self.assertEqual([each.outputs[0].token_ids for each in self.llm.generate(prompts, params)], alone)
        self.assertGreater(max(each["batchSize"] for each in self.llm.get_stats()), 2)

    def test_more_requests_than_run_together_wait_for_their_turn(self):
        llm = self.engine(build_config=whit.BuildConfig(max_batch_size=2))
        requests = [llm.generate_async("Once", whit.SamplingParams(max_tokens=60, ignore_eos=True)) for _ in range(7)]
        self.assertEqual(len({tuple(each.result().outputs[0].token_ids) for each in requests}), 1)
        self.assertEqual({each["batchSize"] for each in llm.get_stats()} - {1}, {2})

    def test_aborting_one_of_several_leaves_the_others(self):
        params = whit.SamplingParams(max_tokens=150, ignore_eos=True)
        expected = self.llm.generate("Once upon", params).outputs[0].token_ids
        requests = [self.llm.generate_async("Once upon", params) for _ in range(4)]
        endless = self.llm.generate_async("x", whit.SamplingParams(max_tokens=400, n=16, ignore_eos=True))
        endless.abort()
        self.assertEqual([each.result().outputs[0].token_ids for each in requests], [expected] * 4)
        self.assertEqual(endless.result().outputs[-1].finish_reason, "cancelled")

    def test_pages_are_reused_unless_the_configuration_says_no(self):
        prompt = [5] * 80
        for reuse in (True, False):
            with whit.LLM(self.model, kv_cache_config=whit.KvCacheConfig(enable_block_reuse=reuse), progress=False) as llm:
                first, second = (llm.generate(prompt, GREEDY).outputs[0].token_ids for _ in range(2))
                self.assertEqual(first, second)
                self.assertEqual([each["reusedTokens"] for each in llm.get_stats()], [0, 64 if reuse else 0])

    def test_shutting_down_ends_what_runs_and_refuses_what_waits(self):
        llm = self.engine(build_config=whit.BuildConfig(max_batch_size=1))
        params = whit.SamplingParams(max_tokens=400, n=4, ignore_eos=True)
        running, waiting = (llm.generate_async("Once", params) for _ in range(2))
        next(iter(running))
        llm.shutdown()
        self.assertEqual(running.result().outputs[-1].finish_reason, "cancelled")
        with self.assertRaises(whit.errors.RequestCancelled):
            waiting.result()

    def test_abort_ends_a_request_early(self):
        # Many long answers: where this thread is kept waiting the first ones may end before they are aborted.
        request = self.llm.generate_async("Once", whit.SamplingParams(max_tokens=400, n=16, ignore_eos=True))
        for _ in request:
            request.abort()
        self.assertTrue(request.aborted())
        self.assertEqual(request.outputs[-1].finish_reason, "cancelled")
        self.assertLess(len(request.outputs[-1].token_ids), 400)

    def test_several_threads_may_use_one_engine(self):
        expected = self.llm.generate("Once upon", GREEDY).outputs[0].token_ids
        found = []
        threads = [threading.Thread(target=lambda: found.append(self.llm.generate("Once upon", GREEDY).outputs[0].token_ids))
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        self.llm.logits("meanwhile")
        for thread in threads:
            thread.join()
        self.assertEqual(found, [expected] * 4)

    def test_statistics_of_requests_are_handed_out_once(self):
        self.llm.get_stats(0)
        self.llm.generate("Once upon", GREEDY)
        record, = self.llm.get_stats()
        self.assertEqual(record["generatedTokens"], 8)
        self.assertEqual(record["promptTokens"], 9)
        self.assertEqual(record["batchSize"], 1)
        self.assertGreater(record["decodeTokensPerSecond"], 0)
        self.assertEqual(self.llm.get_stats(), [])

    def test_a_failing_request_ends_alone(self):
        too_long = [5] * (self.llm.info["max_model_len"] + 1)
        with self.assertRaisesRegex(whit.errors.InvalidArgumentError, "context"):
            self.llm.generate(too_long)
        with self.assertRaisesRegex(ValueError, "outside the vocabulary"):
            self.llm.generate([2**30])
        self.assertEqual(len(self.llm.generate("x", GREEDY).outputs[0].token_ids), 8)


class Engines(ModelTest):
    def test_hidden_states_are_what_the_layers_compute(self):
        llm = self.engine()
        states = llm.hidden_states("Once upon a time")
        tokens = len(llm.encode("Once upon a time"))
        self.assertEqual(list(states)[0], "model.embed_tokens.output")
        self.assertEqual({each.shape for each in states.values()}, {(tokens, llm.config.hidden_size)})
        # The head over the last norm's output is the logits, so all layers before it are right.
        head = "model.embed_tokens" if llm.config.tie_word_embeddings else "lm_head"
        logits = states["model.norm.output"] @ llm.weight(head).T
        np.testing.assert_allclose(logits, llm.logits("Once upon a time"), rtol=1e-4, atol=1e-4)
        taps = llm.hidden_states("Once", "model.layers.1.mlp.down_proj.input")
        self.assertEqual(taps["model.layers.1.mlp.down_proj.input"].shape[1], llm.config.intermediate_size)
        with self.assertRaisesRegex(ValueError, "model.layers.77.output is no tap"):
            llm.hidden_states("x", ["model.layers.77.output"])

    def test_reports_and_statistics_are_tables_and_arrays(self):
        llm = self.engine(**AWQ)
        report = llm.quantization_report()
        table = report.to_dict()
        self.assertEqual({len(column) for column in table.values()}, {len(report)})
        self.assertEqual(sorted(set(table["layer"])), list(range(llm.config.num_hidden_layers)))
        self.assertTrue((report.array("error") <= report.array("rtn_error") * (1 + 1e-9)).all())
        with self.assertRaisesRegex(whit.errors.UnsupportedError, "no quantization report"):
            self.engine().quantization_report()
        name = "model.layers.0.self_attn.q_proj"
        found = whit.statistics.activation_statistics(llm, ["Once upon", "a time"], [name])[name]
        self.assertEqual(found["max_abs"].shape, (llm.config.hidden_size,))
        self.assertTrue((found["max_abs"] >= found["mean_abs"]).all())

    def test_plots_are_drawn_where_matplotlib_is(self):
        from whit import plots
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            self.skipTest("matplotlib is not installed")
        llm, original = self.engine(**AWQ), self.engine()
        name = "model.layers.1.mlp.gate_proj"
        before, after = (whit.statistics.activation_statistics(each, ["Once upon"], [name])[name] for each in (original, llm))
        plots.plot_errors(llm.quantization_report()).figure.savefig(self.folder / "errors.png")
        plots.plot_outliers(before, after).figure.savefig(self.folder / "outliers.png")
        plots.plot_pareto([("a", 4.5, 1.0), ("b", 8.0, 0.5), ("c", 8.5, 0.7)]).figure.savefig(self.folder / "pareto.png")
        self.assertEqual(plots.pareto_front([("a", 4.5, 1.0), ("b", 8.0, 0.5), ("c", 8.5, 0.7)]),
                         [("a", 4.5, 1.0), ("b", 8.0, 0.5)])
        self.assertGreater((self.folder / "pareto.png").stat().st_size, 1000)

    def test_save_copies_an_engine_that_answers_the_same(self):
        llm = self.engine(**AWQ)
        llm.save(self.folder / "saved")
        llm.save(self.folder / "saved")  # replaces an engine
        saved = whit.LLM(self.folder / "saved", progress=False)
        self.addCleanup(saved.shutdown)
        self.assertEqual(saved.generate("Once", GREEDY).outputs[0].token_ids, llm.generate("Once", GREEDY).outputs[0].token_ids)
        (self.folder / "mine").mkdir(exist_ok=True)
        (self.folder / "mine/notes").write_text("keep")
        with self.assertRaises(whit.WhitError):
            llm.save(self.folder / "mine")
        with self.assertRaisesRegex(NotImplementedError, "no engine to save"):
            self.engine().save(self.folder / "none")

    def test_the_llm_of_tensorrt_builds_the_same_engine(self):
        with whit.LLM(self.model, quant_config=whit.QuantConfig(quant_algo=whit.QuantAlgo.W4A8_AWQ, group_size=32),
                      calib_config=whit.CalibConfig(calib_batches=4, calib_max_seq_length=32, random_seed=0),
                      kv_cache_config=whit.KvCacheConfig(max_tokens=100), max_batch_size=8, progress=False) as llm:
            self.assertEqual(llm.path, self.engine(**AWQ).path)  # from the cache
            self.assertEqual(llm.info["max_model_len"], 100)
            self.assertEqual(llm.quantization_report().mode, "awq")
        with self.assertRaisesRegex(RuntimeError, "shut down"):
            llm.generate("x")
        self.assertEqual(whit.QuantConfig(quant_algo="FP8_PER_CHANNEL_PER_TOKEN").policy,
                         {"weight_dtype": "fp8", "activation_dtype": "fp8"})

    def test_progress_is_reported_and_can_end_the_work(self):
        seen = []
        whit.LLMEngine.from_pretrained(self.model, **QUICK | {"seed": 5, "progress": lambda *state: seen.append(state)}, **AWQ)
        self.assertTrue(any("quantizing" in title for title, *_ in seen))
        self.assertTrue(seen[-1][-1])

        def fail(*_):
            raise KeyError("stop")

        with self.assertRaisesRegex(KeyError, "stop"):
            whit.LLMEngine.from_pretrained(self.model, **QUICK | {"seed": 6, "progress": fail}, **AWQ)
        self.assertFalse([path for path in (self.folder / "cache").rglob("*tmp*")])

    def test_the_interpreter_runs_while_an_engine_is_built(self):
        ticks, done = [], threading.Event()

        def tick():
            while not done.wait(0.001):
                ticks.append(time.monotonic())

        thread = threading.Thread(target=tick)
        thread.start()
        start = time.monotonic()
        self.engine(seed=9, **AWQ)
        end = time.monotonic()
        done.set()
        thread.join()
        self.assertGreater(len([each for each in ticks if start < each < end]), 3)

    def test_ctrl_c_ends_building_and_generating(self):
        # A test run in the background is started with SIGINT ignored, and Python then installs no handler of its own.
        code = (f"import signal, whit\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
                f"llm = whit.LLMEngine.from_pretrained({str(self.model)!r}, progress=False)\n"
                "print('ready', flush=True)\n"
                "try:\n"
                "    while True: llm.generate('x', whit.SamplingParams(max_tokens=200, ignore_eos=True))\n"
                "except KeyboardInterrupt:\n"
                "    print('generating ended', len(llm.generate('x').outputs), flush=True)\n"
                "try:\n"
                "    print('building', flush=True)\n"
                f"    whit.LLMEngine.from_pretrained({str(self.model)!r}, quant_mode='awq', calib_samples=20000, calib_length=64,"
                f" group_size=32, progress=False)\n"
                "except KeyboardInterrupt:\n"
                "    print('building ended', flush=True)\n")
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            for expected in ("ready", "generating ended 1", "building"):
                self.assertEqual(process.stdout.readline().strip(), expected, process.poll())
                if expected != "generating ended 1":
                    time.sleep(0.5)
                    process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
            self.assertEqual(output.strip(), "building ended", errors)
            self.assertEqual(process.returncode, 0, errors)

    def test_an_interpreter_may_end_while_a_request_runs(self):
        code = (f"import whit\nllm = whit.LLMEngine.from_pretrained({str(self.model)!r}, progress=False)\n"
                "llm.generate_async('x', whit.SamplingParams(max_tokens=200, ignore_eos=True))\n")
        gone_first = code.replace("generate_async", "generate") + "del llm\n"
        for each in (code, gone_first) * 3:
            subprocess.run([sys.executable, "-c", each], check=True, timeout=60)


class Errors(ModelTest):
    def test_what_is_unknown_is_refused_by_name(self):
        for words, call in {
            "tempurature": lambda: whit.SamplingParams(tempurature=1.0),
            "'weight_dtypes'; did you mean 'weight_dtype'": lambda: self.engine(quant_policy={"weight_dtypes": "int4"}),
            "quant_mod": lambda: self.engine(quant_mod=QuantMode.AWQ),
            "'tensor_paralel_size'; did you mean 'tensor_parallel_size'": lambda: whit.LLM(self.model, tensor_paralel_size=1),
            "'quant_alg'; did you mean": lambda: whit.QuantConfig.from_dict({"quant_alg": "W4A16"}),
        }.items():
            with self.subTest(words), self.assertRaisesRegex(TypeError, words):
                call()

    def test_what_cannot_be_honoured_is_refused_with_its_reason(self):
        for words, call in {
            "use_beam_search=True": lambda: whit.SamplingParams(use_beam_search=True),
            "tensor_parallel_size=2": lambda: whit.LLM(self.model, tensor_parallel_size=2),
            "FP8 is not implemented": lambda: whit.QuantConfig(quant_algo="FP8"),
            "fp8 need --backend cuda": lambda: whit.LLM(self.model, kv_cache_config=whit.KvCacheConfig(dtype="fp8"),
                                                        progress=False).generate("x"),
            "mode smoothquant with int4 weights": lambda: self.engine(
                quant_mode=QuantMode.SMOOTHQUANT, quant_policy={"weight_dtype": "int4", "activation_dtype": "float"}),
        }.items():
            with self.subTest(words), self.assertRaisesRegex(NotImplementedError, words):
                call()

    def test_exceptions_have_the_type_of_their_meaning(self):
        with self.assertRaisesRegex(FileNotFoundError, "does not exist"):
            whit.LLMEngine.from_pretrained(self.folder / "nowhere")
        with self.assertRaisesRegex(ValueError, "the prompt has no tokens"):
            self.engine().generate("")
        broken = self.folder / "broken"
        broken.mkdir()
        (broken / "config.json").write_text("{")
        with self.assertRaisesRegex(whit.errors.InvalidDataError, "config.json"):
            whit.PretrainedConfig.from_json_file(broken / "config.json")
        for name in whit.errors.__all__:
            self.assertTrue(issubclass(getattr(whit.errors, name), whit.WhitError))

    def test_config_is_read_checked_and_read_only(self):
        config = whit.PretrainedConfig.from_checkpoint(self.model)
        raw = json.loads((self.model / "config.json").read_text())
        self.assertEqual(config.architecture, raw["architectures"][0])
        self.assertEqual(whit.PretrainedConfig.from_dict(raw), config)
        with self.assertRaisesRegex(AttributeError, "read-only"):
            config.hidden_size = 1

    def test_a_missing_cache_directory_is_an_error(self):
        before = {name: os.environ.pop(name, None) for name in ("HOME", "XDG_CACHE_HOME")}
        try:
            with self.assertRaisesRegex(ValueError, "there is no place for the engine"):
                self.engine(**AWQ)
        finally:
            os.environ.update({name: value for name, value in before.items() if value is not None})


if __name__ == "__main__":
    unittest.main()
