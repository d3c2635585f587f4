"""lm-eval against `whit serve`: log-likelihoods of a multiple-choice task and greedy answers, with the tokenizer of the server.

`lm-eval` is installed once into a virtual environment in the cache; without a network the test is skipped.
"""
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from serve_support import Server, client_python

REQUIREMENTS = ["lm-eval[api]==0.4.13"]
SMOL = os.environ.get("WHIT_SMOL_GGUF")
QUESTIONS = [("The capital of France is", ["Paris", "Berlin", "Madrid", "Rome"]), ("Water freezes at zero degrees", ["Celsius", "Kelvin", "volts"]),
             ("The sun rises in the", ["east", "west", "cupboard"]), ("Two plus two equals", ["four", "nine", "purple"]),
             ("The opposite of hot is", ["cold", "chair", "seven"]), ("A dog is a kind of", ["animal", "number", "planet"]),
             ("The largest ocean on Earth is the", ["Pacific", "Arctic", "Baltic"]), ("Monday is followed by", ["Tuesday", "Friday", "Juneday"])]
TASKS = {
    "whit_choice": """
task: whit_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
""",
    "whit_greedy": """
task: whit_greedy
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8, temperature: 0}}
filter_list: [{{name: first, filter: [{{function: regex, regex_pattern: "(\\\\w+)"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match}}]
"""}


class LmEval(unittest.TestCase):
    def test_its_figures_are_those_of_the_server_slow(self):
        if not SMOL:
            self.skipTest("WHIT_SMOL_GGUF does not name the default model")
        python, why = client_python(REQUIREMENTS)
        if python is None:
            self.skipTest(why)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = folder / "test.jsonl"
            data.write_text("".join(json.dumps({"question": q, "choices": c, "answer": 0}) + "\n" for q, c in QUESTIONS))
            for task, text in TASKS.items():
                (folder / f"{task}.yaml").write_text(text.format(data=data))
            server = Server(SMOL, "--served-model-name", "smol", "--max-model-len", 2048)
            self.addCleanup(server.stop)
            url = f"http://{server.host}:{server.port}/v1/completions"
            environment = os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
            result = subprocess.run(
                [str(python), "-m", "lm_eval", "run", "--model", "local-completions", "--model_args",
                 f"model=smol,base_url={url},tokenizer_backend=remote,num_concurrent=4,max_retries=1", "--tasks", ",".join(TASKS),
                 "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"],
                capture_output=True, env=environment, timeout=600, check=False)
            self.assertEqual(result.returncode, 0, result.stderr.decode()[-3000:])
            report = json.loads(next((folder / "out").rglob("results_*.json")).read_text())
            samples = [json.loads(line) for line in next((folder / "out").rglob("samples_whit_choice_*.jsonl")).read_text().splitlines()]
            self.assertEqual(len(samples), len(QUESTIONS))
            for sample in samples:
                for choice, response in zip(sample["doc"]["choices"], sample["filtered_resps"]):
                    question = sample["doc"]["question"]
                    context = len(server.post("/tokenize", {"prompt": question, "add_special_tokens": False})[1]["tokens"])
                    body = server.post("/v1/completions", {"prompt": f"{question} {choice}", "echo": True, "logprobs": 1, "max_tokens": 0,
                                                           "add_special_tokens": False})[1]
                    expected = sum(body["choices"][0]["logprobs"]["token_logprobs"][context:])
                    self.assertAlmostEqual(float(response[0]), expected, delta=1e-3)
            self.assertGreaterEqual(report["results"]["whit_choice"]["acc,none"], 0.75)
            self.assertGreaterEqual(report["results"]["whit_greedy"]["exact_match,first"], 0.25)


if __name__ == "__main__":
    unittest.main()
