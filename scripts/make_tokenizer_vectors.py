#!/usr/bin/env python3
"""Expected token ids for src/tokenizer's tests, from PyPI's `tokenizers`.

  make_tokenizer_vectors.py synthetic          writes tests/data/tokenizer/kind_*.json: small tokenizers of every
                                               supported kind, with texts, ids and decoded texts
  make_tokenizer_vectors.py random HF_DIR      writes tests/data/tokenizer/smol_random.txt: one FNV-1a hash of the
                                               ids of each of 12,000 generated strings
  make_tokenizer_vectors.py show HF_DIR N      prints generated string N and its ids (when a hash differs)

The strings are generated from a seed by the same small generator here and in tests/tokenizer_vectors_test.cc.
"""
import json
import pathlib
import sys

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests/data/tokenizer"
MASK = (1 << 64) - 1
COUNT = 12000


class SplitMix64:
    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n


def generate(index, source):
    """String number `index`; `source` is random_fragments.json."""
    rng = SplitMix64(index * 1000003 + 12345)
    pools, ranges = source["pools"], source["ranges"]
    parts = []
    for _ in range(1 + rng.below(24)):
        kind = rng.below(16)
        if kind < 10:
            pool = pools[rng.below(len(pools))]
            parts.append(pool[rng.below(len(pool))])
        elif kind < 12:
            low, high = ranges[rng.below(len(ranges))]
            parts.append(chr(low + rng.below(high - low + 1)))
        elif kind < 13:
            pool = pools[rng.below(len(pools))]
            fragment = pool[rng.below(len(pool))]
            parts.append(fragment * (1 + rng.below(8)))
        elif kind < 15:
            parts.append("".join(chr(97 + rng.below(26)) for _ in range(1 + rng.below(12))))
        else:
            parts.append("".join(chr(48 + rng.below(10)) for _ in range(1 + rng.below(9))))
    return "".join(parts)


def fnv1a(ids):
    value = 2166136261
    for token in ids:
        for byte in token.to_bytes(4, "little"):
            value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


CORPUS = """
The river rises in the hills and reaches the sea after two hundred miles. It's a slow river, and they've
always said that it doesn't hurry. In 1923 the water stood 14.5 metres above the mark; in 2004 only 3.
for (int i = 0; i < count; ++i) { total += values[i] * weights[i]; }    return total / count;
Der Fluß fließt langsam durch die grünen Wiesen, und niemand weiß, woher er kommt. Où va-t-il? À la mer, bien sûr.
Река течёт медленно, и никто не знает, откуда она. 川はゆっくり流れる。河水缓缓流过平原，没有人知道它从哪里来。
Ο ποταμός ρέει αργά. नदी धीरे बहती है। النهر يجري ببطء. 강은 천천히 흐른다. 🌊 🏞️ 👩‍👩‍👧
"There is nothing," she said, "that the river has not seen." He wasn't sure; we'll see, he'd answered.
""".strip().split("\n")

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def special(text, **options):
    return AddedToken(text, special=True, normalized=False, **options)


def train(tokenizer, vocab_size, initial=(), alphabet=()):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(initial),
                                  initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return json.loads(tokenizer.to_str())


def bytelevel(regex, size, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, size, alphabet=pre_tokenizers.ByteLevel.alphabet())


def kind_qwen2():
    tokenizer = Tokenizer.from_str(json.dumps(bytelevel(QWEN2, 420, normalizers.NFC())))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    return tokenizer


def kind_llama3():
    tokenizer = bytelevel(LLAMA3, 420)
    tokenizer["model"]["ignore_merges"] = True
    # Merges as "left right" strings, the older spelling; and a token that only ignore_merges can produce.
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    tokenizer["model"]["vocab"]["Ġseen"] = max(tokenizer["model"]["vocab"].values()) + 1
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer))
    tokenizer.add_special_tokens([special("<|begin_of_text|>"), special("<|eot_id|>")])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B",
                                      special_tokens=[("<|begin_of_text|>", begin)])])
    return tokenizer


def sentencepiece(size):
    initial = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")  # for training only
    model = train(tokenizer, size, initial=initial)
    model["pre_tokenizer"] = None
    model["added_tokens"] = []
    # Rare characters go through bytes.
    vocab = model["model"]["vocab"]
    for character in "Où川":
        vocab.pop(character, None)
    model["model"]["merges"] = [pair for pair in model["model"]["merges"]
                                if not set("Où川") & set("".join(pair))]
    for token in [token for token in vocab if len(token) > 1 and set("Où川") & set(token)]:
        vocab.pop(token)
    for i, token in enumerate(sorted(vocab, key=vocab.get)):
        vocab[token] = i
    return model


def kind_llama2():
    tokenizer = Tokenizer.from_str(json.dumps(sentencepiece(620)))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([special("<unk>"), special("<s>"), special("</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B",
                                                             special_tokens=[("<s>", 1)])
    return tokenizer


def kind_metaspace():
    model = sentencepiece(560)
    model["normalizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(model))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.add_special_tokens([special("<s>"), special("</s>"), special("[INST]"), special("[/INST]")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A $B </s>",
                                                             special_tokens=[("<s>", 1), ("</s>", 2)])
    return tokenizer


def kind_unknown():
    """Unknown tokens not fused, no bytes; Metaspace that splits; added tokens of every flag."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[ \t]{2,}"), " "),
        normalizers.Strip(left=False, right=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace("▁", prepend_scheme="always"),
        pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.Punctuation("merged_with_previous")])
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    model = train(tokenizer, 300, initial=["[UNK]"])
    for character in "xzж🌊":
        model["model"]["vocab"].pop(character, None)
    kept = model["model"]["vocab"]
    model["model"]["merges"] = [pair for pair in model["model"]["merges"]
                                if all(part in kept for part in (*pair, "".join(pair)))
                                and not set("xzж🌊") & set("".join(pair))]
    for i, token in enumerate(sorted(kept, key=kept.get)):
        kept[token] = i
    model["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(model))
    tokenizer.add_special_tokens([special("[UNK]"), special("[L]", lstrip=True), special("[R]", rstrip=True),
                                  special("[LR]", lstrip=True, rstrip=True), special("[W]", single_word=True)])
    tokenizer.add_tokens([AddedToken("River", normalized=True), AddedToken("sea", single_word=True),
                          AddedToken("the sea", normalized=True), AddedToken("[N]", normalized=True, lstrip=True)])
    return tokenizer


def kind_words():
    """Whitespace words, GPT-2 style prefix space, split behaviours."""
    tokenizer = Tokenizer(models.BPE(unk_token="?", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(";", "removed"), pre_tokenizers.Split("-", "merged_with_next"),
        pre_tokenizers.Split(Regex(r"[0-9]+"), "contiguous", invert=True), pre_tokenizers.Whitespace()])
    return Tokenizer.from_str(json.dumps(train(tokenizer, 260, initial=["?"])))


def kind_gpt2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer.from_str(json.dumps(train(tokenizer, 380, alphabet=pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.add_special_tokens([special("<|endoftext|>")])
    cls = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.RobertaProcessing(("<|endoftext|>", cls), ("<|endoftext|>", cls))
    return tokenizer


FIXED_TEXTS = [
    "", " ", "  ", "\n", "\n\n", " \n ", "\t", "a", " a", "a ", "Hello, world!", "it's I'M they'll WE'VE 'S",
    "12345 67 8", "river\n\n  sea\r\n", "   leading and trailing   ", "é e\u0301 ﬁ Å Å", "Où 川 zж🌊x",
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>", "<s>[INST] hi [/INST]</s>", "<|begin_of_text|>seen seen<|eot_id|>",
    "a [L] b [R] c [LR] d", "x[W]x [W] [W]", "River river sea seas the sea the seas", "[N]  [N]", "one;two;-three--4-5x6;",
    "İSTANBUL ΣΑΣ ẞ", "\u00a0\u3000x\u2003", "\u200d\ufeff\u0000\u0001", "👩‍👩‍👧 🏞️", "<0x41> <unk>", "<|endoftext|><|endoftext|>",
    "Ġ Ċ ▁ ▁▁x", "١٢٣ ⅷ ½ ②", "don't — “quoted” …",
]


def write_synthetic():
    source = json.loads((DATA / "random_fragments.json").read_text())
    texts = FIXED_TEXTS + [generate(index, source) for index in range(100000, 100030)]
    for name, make in [("qwen2", kind_qwen2), ("llama3", kind_llama3), ("llama2", kind_llama2),
                       ("metaspace", kind_metaspace), ("unknown", kind_unknown), ("words", kind_words),
                       ("gpt2", kind_gpt2)]:
        tokenizer = make()
        cases = []
        for text in texts:
            tokenizer.encode_special_tokens = False
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            with_special = tokenizer.encode(text, add_special_tokens=True).ids
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = False
            cases.append({"text": text, "ids": ids, "with_special": with_special, "plain": plain,
                          "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                          "skipped": tokenizer.decode(ids, skip_special_tokens=True)})
        content = json.loads(tokenizer.to_str())
        lines = [json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases]
        path = DATA / f"kind_{name}.json"
        path.write_text('{"tokenizer":' + json.dumps(content, ensure_ascii=True, separators=(",", ":")) +
                        ',\n"cases":[\n' + ",\n".join(lines) + "\n]}\n")
        print(path.name, path.stat().st_size, "bytes,", tokenizer.get_vocab_size(), "tokens")


def write_random(hf_dir):
    source = json.loads((DATA / "random_fragments.json").read_text())
    tokenizer = Tokenizer.from_file(str(pathlib.Path(hf_dir) / "tokenizer.json"))
    hashes = [f"{fnv1a(tokenizer.encode(generate(i, source), add_special_tokens=False).ids):08x}"
              for i in range(COUNT)]
    lines = [" ".join(hashes[i:i + 12]) for i in range(0, COUNT, 12)]
    (DATA / "smol_random.txt").write_text("\n".join(lines) + "\n")


def main():
    if sys.argv[1:] == ["synthetic"]:
        write_synthetic()
    elif len(sys.argv) == 3 and sys.argv[1] == "random":
        write_random(sys.argv[2])
    elif len(sys.argv) == 4 and sys.argv[1] == "show":
        source = json.loads((DATA / "random_fragments.json").read_text())
        tokenizer = Tokenizer.from_file(str(pathlib.Path(sys.argv[2]) / "tokenizer.json"))
        text = generate(int(sys.argv[3]), source)
        print(json.dumps(text))
        print(tokenizer.encode(text, add_special_tokens=False).ids)
    else:
        sys.exit(__doc__)


main()
