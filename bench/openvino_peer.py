#!/usr/bin/env python3
"""OpenVINO's side of bench/peers.py, run by the Python of the environment that `peers.py setup` makes.

usage: openvino_peer.py MODEL.gguf [--threads 2] [--batches 1,4,16]      prints {"pp512": t/s, "tg128": …, "tg128 b4": …}

Loads the GGUF file with OpenVINO GenAI's own reader. The prompt's rate is that of its first token, with one token asked
for; decoding is what follows the first token of prompts of 4 tokens, all sequences together. Prompts are random, none
twice: the pipeline keeps what it has computed. Every figure follows a run that warms up.
"""
import argparse
import json
import random
import time

import numpy
import openvino
import openvino_genai

PROMPT, GENERATED = 512, 128
VOCABULARY = 49152  # of the default model


def generate(pipeline, batch, prompt, generated):
    """Seconds to the first tokens and from there to the end."""
    ids = numpy.array([[random.randrange(100, VOCABULARY) for _ in range(prompt)] for _ in range(batch)], dtype=numpy.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
    config = openvino_genai.GenerationConfig(
        max_new_tokens=generated, min_new_tokens=generated, ignore_eos=True, do_sample=False, apply_chat_template=False)
    begin = time.perf_counter()
    result = pipeline.generate(inputs, config)
    total = time.perf_counter() - begin
    lengths = {len(tokens) for tokens in result.tokens}
    if lengths != {generated}:
        raise RuntimeError(f"{generated} tokens were asked for, {lengths} came")
    first = total if generated == 1 else result.perf_metrics.get_ttft().mean / 1000
    return first, total - first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=lambda text: [int(each) for each in text.split(",")], default=[1])
    arguments = parser.parse_args()
    pipeline = openvino_genai.LLMPipeline(arguments.model, "CPU", INFERENCE_NUM_THREADS=arguments.threads)
    generate(pipeline, 1, PROMPT, 1)
    rates = {f"pp{PROMPT}": PROMPT / generate(pipeline, 1, PROMPT, 1)[0]}
    for batch in arguments.batches:
        generate(pipeline, batch, 4, 8)
        name = f"tg{GENERATED}" + (f" b{batch}" if batch > 1 else "")
        rates[name] = batch * GENERATED / generate(pipeline, batch, 4, GENERATED + 1)[1]
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
