#!/bin/sh
# ctranslate2 4.8.5. `Translator.translate_batch(..., return_logits_vocab=True)`, whose docstring
# promises "the log probs of each token", gives nothing with the default beam of 2, nor with any other
# beam: one array without a shape for each hypothesis, and no error. With beam_size=1 there is an array
# of the vocabulary's size for each position, but of logits: subtract their logsumexp, and the sum over
# the tokens is the score. The first of them has -3.4e38 for `</s>` unless min_decoding_length=0.
#
# Seen: beam 1: 5 tokens, 5 arrays of [16]; beams 2 and 4: one array of []. logsumexp of the
#       first position 3.38, not 0; sum of logits less logsumexp -7.5232, as the score.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ctranslate2==4.8.5 numpy==2.4.1
cat > "$folder/run.py" <<'PY'
"""A transformer of T5's form with one layer and random weights, made by CTranslate2's own specs."""

import os
import sys

import ctranslate2
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

VOCABULARY, WIDTH, INNER, HEADS = 16, 8, 16, 2
rng = np.random.default_rng(0)


def matrix(*shape, scale=1.0):
    return (rng.normal(size=shape) * scale).astype(np.float32)


def attention(spec, widths):
    spec.layer_norm.gamma = np.ones(WIDTH, np.float32)
    for linear, width in zip(spec.linear, widths):
        linear.weight = matrix(width, WIDTH, scale=0.5)


spec = transformer_spec.TransformerSpec.from_config(
    (1, 1), HEADS, pre_norm=True, activation=common_spec.Activation.RELU,
    relative_attention_bias=True, rms_norm=True,
)
for stack in (spec.encoder, spec.decoder):
    embeddings = stack.embeddings
    for one in embeddings if isinstance(embeddings, list) else [embeddings]:
        one.weight = matrix(VOCABULARY, WIDTH)
    stack.scale_embeddings = False
    stack.layer_norm.gamma = np.ones(WIDTH, np.float32)
    for layer in stack.layer:
        own = layer.self_attention
        attention(own, (3 * WIDTH, WIDTH))
        own.relative_attention_bias = matrix(4, HEADS)
        own.relative_attention_max_distance = np.dtype("int32").type(8)
        if stack is spec.decoder:
            attention(layer.attention, (WIDTH, 2 * WIDTH, WIDTH))
        layer.ffn.layer_norm.gamma = np.ones(WIDTH, np.float32)
        layer.ffn.linear_0.weight = matrix(INNER, WIDTH, scale=0.5)
        layer.ffn.linear_1.weight = matrix(WIDTH, INNER, scale=0.5)
spec.decoder.projection.weight = matrix(VOCABULARY, WIDTH, scale=0.5)
tokens = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(VOCABULARY - 3))]
spec.register_source_vocabulary(tokens)
spec.register_target_vocabulary(tokens)
spec.config.decoder_start_token = "<s>"
os.mkdir(sys.argv[1])
spec.validate()
spec.save(sys.argv[1])

translator = ctranslate2.Translator(sys.argv[1])
shapes = {}
for beam in (1, 2, 4):
    (result,) = translator.translate_batch(
        [["t1", "t2", "</s>"]], beam_size=beam, return_logits_vocab=True, return_scores=True,
        length_penalty=0, max_decoding_length=5,
    )
    shapes[beam] = [x.shape for x in result.logits[0]]
    print(f"beam {beam}: {len(result.hypotheses[0])} tokens, arrays of {shapes[beam]}")
    if beam == 1:
        rows = [np.array(x, np.float64) for x in result.logits[0]]
        sums = [float(np.log(np.exp(row).sum())) for row in rows]
        ids = [tokens.index(token) for token in result.hypotheses[0]]
        total = sum(row[i] - z for row, i, z in zip(rows, ids, sums))
        print(f"logsumexp of the first {sums[0]:.2f}; sum {total:.4f}, score {result.scores[0]:.4f}")
        print(f"</s> at the first {rows[0][2]:.1e}")
        fine = abs(sums[0]) > 1 and abs(total - result.scores[0]) < 1e-4 and rows[0][2] < -1e38
sys.exit(not (fine and shapes == {1: [[16]] * 5, 2: [[]], 4: [[]]}))
PY
"$folder/venv/bin/python" "$folder/run.py" "$folder/model"
