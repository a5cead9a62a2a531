"""What `dss_jax.train.hlo` reads from a program's text: of a TPU (recorded), of CPUs (compiled
here), and of forms that neither has.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dss_jax.train import hlo

LAYERS, WIDTH, ROWS, DEVICES = 6, 512, 1024, 4

TPU = Path(__file__).with_name("fixtures") / "tpu_v5e_scan.hlo.txt"
"""`_step` compiled for v5e:2x2 by libtpu 0.0.42.1, 2026-11-29, with the kernels' rows over an axis
of four chips; of the back end's notes only what is read."""


def _step(kernels: jax.Array, x: jax.Array) -> jax.Array:
    def loss(kernels: jax.Array) -> jax.Array:
        with jax.named_scope("mlp"):
            y, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)
        return jnp.mean(y**2)

    return kernels - 0.1 * jax.grad(loss)(kernels)


def _found(text: str) -> list[tuple[str, int, int, bool]]:
    return [(c.kind, c.times, c.size, c.loop) for c in hlo.collectives(text)]


class TestTpu:
    def test_what_is_sent_is_counted_once_and_by_its_kind(self) -> None:
        """The backward pass's gather is in three fusions: its begin, its middle and its end; the
        reduce-scatter is a fusion of an all-reduce.
        """
        text = TPU.read_text()
        assert text.count(" all-gather(") == 4
        assert " reduce-scatter(" not in text
        gathered, scattered = WIDTH * WIDTH * 2, WIDTH * WIDTH * 4 // DEVICES
        assert _found(text) == [
            ("all-gather", LAYERS, gathered, True),
            ("reduce-scatter", LAYERS, scattered, True),
            ("all-gather", LAYERS, gathered, True),
        ]
        assert hlo.collectives(text)[1].arrays == ("f32[128,512]",)
        assert hlo.sent(text) == {
            "all-gather": (2 * LAYERS, 2 * LAYERS * gathered),
            "reduce-scatter": (LAYERS, LAYERS * scattered),
        }

    def test_cycles_are_those_of_all_turns_and_none_is_without_a_part(self) -> None:
        text = TPU.read_text()
        body = "jit(step)/jvp(mlp)/while/body"
        by_name = hlo.cycles_by_name(text)
        assert by_name[f"{body}/closed_call/dot_general"] == LAYERS * 1280
        assert by_name[f"{body}/jit(dynamic_index_in_dim)/dynamic_slice"] == LAYERS * 2663
        parts = hlo.cycles(text)
        assert sum(parts.values()) == sum(by_name.values())
        assert parts["feed-forward"] == LAYERS * (1280 + 2608) + 112
        assert "other" not in parts


def test_loops_of_cpu_programs_are_counted() -> None:
    mesh = jax.make_mesh((DEVICES,), ("data",))
    everywhere, rows = (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec("data")),
    )
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((LAYERS, 8, 8), (16, 8))]
    step = jax.jit(_step, in_shardings=(everywhere, rows), out_shardings=everywhere)
    text = step.lower(*shapes).compile().as_text()
    assert text is not None
    # A kernel's gradient is summed in its layer's turn, or all are after the loop.
    assert sum(c.times * c.size for c in hlo.collectives(text)) == LAYERS * 8 * 8 * 4
    assert hlo.cycles(text) == {}
    turns = {op.times for op in hlo.operations(text) if "/while/body/" in op.name}
    assert turns == {LAYERS}


MADE = """HloModule made

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %sum = f32[8]{0} all-reduce(%x), to_apply=%add
  %one = s32[] constant(1)
  ROOT %pair = (s32[], f32[8]) tuple(%one, %sum)
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%limit, %limit), direction=LT
}

%scatter (y: f32[8]) -> f32[4] {
  ROOT %part = f32[4]{0} reduce-scatter(%y), dimensions={0}
}

ENTRY %main (a: f32[4]) -> f32[8] {
  %a = f32[4]{0} parameter(0), metadata={op_name="a"}
  %copy = f32[4]{0} copy(%a), backend_config={"estimated_cycles":"7"}
  %begin = (f32[4]{0}, f32[8]{0}) all-gather-start(%copy), dimensions={0}
  %whole = f32[8]{0} all-gather-done(%begin), metadata={op_name="jit(f)/jvp(X)/mlp/gather"}
  %async = ((f32[8]), f32[4], u32[]) async-start(%whole), calls=%scatter
  %l = (s32[], f32[8]) while(%pair), condition=%cond, body=%body {"known_trip_count":{"n":"3"}}
  %other = (s32[], bf16[2,3]) while(%pair), condition=%cond, body=%body
  ROOT %last = f32[8]{0} get-tuple-element(%l), index=1
}
"""


def test_forms_of_gpus() -> None:
    """Begin and end, a computation that runs beside, trips that XLA knows, and those it does not
    say; what the compiler has made itself counts with what reads it.
    """
    assert _found(MADE) == [
        ("all-gather", 1, 32, False),
        ("reduce-scatter", 1, 16, False),
        ("all-reduce", 3, 32, True),
        ("all-reduce", 5, 32, True),
    ]
    assert hlo.cycles(MADE) == {"feed-forward": 7}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(train_step)/sub", "optimizer"),
        ("jit(train_step)/jvp(T5)/encoder/while", hlo.LAYERS),
        ("jit(train_step)/transpose(jvp(T5))/decoder/while/body/dynamic_slice", hlo.LAYERS),
        ("jit(train_step)/jvp(T5)/encoder/layers/attention/dropout/xor", "dropout"),
        ("jit(train_step)/jvp(T5)/encoder/layers/pre_attention_layer_norm/mul", "norms"),
        ("jit(train_step)/jvp(T5)/encoder/layers/attention/query/dot_general", "attention"),
        ("jit(train_step)/jvp(T5)/decoder/layers/mlp/wo/dot_general", "feed-forward"),
        ("jit(train_step)/jvp()/reduce_sum", "logits and loss"),
        ("", "other"),
    ],
)
def test_parts(name: str, part: str) -> None:
    assert hlo.part_of(name) == part
