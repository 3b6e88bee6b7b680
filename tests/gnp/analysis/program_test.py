"""Read compiled programs: closed forms, and texts as XLA writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp.analysis.program import product_flops, read_collectives, read_program, read_results

# A loop of three rounds with a sum in it; a sum of which each keeps a part; a gather inside of two
# operations, and one that starts and ends; a scatter; a permutation.
TEXT = """HloModule jit_f
%body.1 (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %s = (f32[4,2]{1,0}, bf16[4]{0}) all-reduce(%a, %b), channel_id=1, replica_groups=[2,4]<=[8], \
metadata={op_name="jit(step)/jit(main)/while/body/transpose(jvp(Net))/block_1/conv/conv_general"}
}
%cond.7 (p: (u32[], f32[4])) -> pred[] {
  %n = u32[]{:T(128)} constant(6)
  ROOT %l = pred[] compare(%i, %n), direction=LT
}
%body.7 (p: (u32[], f32[4])) -> (u32[], f32[4]) {
  %c = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=9, \
source_target_pairs={{0,1},{1,0}}
}
%add (x: f32[], y: f32[]) -> f32[] {
}
%all-reduce-scatter.2 (x: f32[8]) -> f32[4] {
  %k = f32[8]{0} all-reduce(%x), channel_id=2, replica_groups={{0,1}}
}
%fused.4 (x: f32[2]) -> f32[8] {
  %o = f32[8]{0} all-gather(%x), channel_id=3, replica_groups={{0,1,2,3}}
}
%fused.5 (x: f32[2]) -> f32[8] {
  %q = f32[8]{0} all-gather(%x), channel_id=3, replica_groups={{0,1,2,3}}
}
ENTRY %main.3 (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[4,2]) while(%t), condition=%cond, body=%body.1, \
backend_config={"known_trip_count":{"n":"3"}}
  %v = (u32[], f32[4]) while(%t), condition=%cond.7, body=%body.7
  %m = f32[4]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2, \
metadata={op_name="jit(step)/transpose(jvp(Net))/conv/dot"}
  %g = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, \
metadata={op_name="jit(step)/jvp(Net)/dense/reshard"}
  %h = f32[8]{0} all-gather-done(%g)
  %r = f32[2]{0} reduce-scatter(%h), \
replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  ROOT %c = pred[16]{0} collective-permute(%r), source_target_pairs={{0,1},{1,0}}
}
"""


def test_collectives_of_a_text():
    found = [(*each, each.sent) for each in read_collectives(TEXT, devices=8)]
    assert found == [
        ("all-reduce", 40, 2, 4, "while/body/block_1/conv", True, 3, 3 * 40 * 2 * 3 / 4),
        ("collective-permute", 16, 1, 8, "", False, 6, 6 * 16.0),
        ("reduce-scatter", 32, 1, 2, "conv", True, 1, 32 / 2),
        ("all-gather", 32, 1, 4, "", False, 1, 32 * 3 / 4),
        ("all-gather", 32, 1, 4, "dense", False, 1, 32 * 3 / 4),
        ("reduce-scatter", 32, 1, 4, "", False, 1, 32 * 3 / 4),
        ("collective-permute", 16, 1, 8, "", False, 1, 16.0),
    ]


def test_results_are_counted_once_for_each_time_they_are_written_and_not_inside_of_a_fusion():
    text = """HloModule jit_f
%fused.1 (x: f32[8]) -> f32[8] {
  %b = f32[8]{0} copy(%x)
  ROOT %a = f32[8]{0} negate(%b)
}
%fused.2 (x: f32[6]) -> f32[6] {
  %x = f32[2,3]{1,0} parameter(0)
  %t = f32[3,2]{1,0} transpose(%x), dimensions={1,0}
  ROOT %c = f32[6]{0} bitcast(%t)
}
%add.1 (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}
%body.1 (p: (s32[], f32[3,200])) -> (s32[], f32[3,200]) {
  %g = f32[3,200]{1,0:T(8,128)} get-tuple-element(%p), index=1
  ROOT %d = f32[3,200]{0,1:T(8,128)S(1)} transpose(%g)
}
%called.1 (x: f32[5]) -> f32[5] {
  ROOT %n = f32[5]{0} negate(%x)
}
ENTRY %main.3 (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[3,200]{1,0:T(8,128)}) while(%t), body=%body.1, \
backend_config={"known_trip_count":{"n":"3"}}
  %f = (f32[]{:T(128)}, /*index=1*/bf16[2,9,130]{2,0,1:T(8,128)(2,1)}) fusion(%x), calls=%fused.1
  %h = f32[6]{0} fusion(%y), kind=kLoop, calls=%fused.2
  %r = f32[] reduce(%x, %zero), dimensions={0}, to_apply=%add.1
  %n = f32[5]{0} call(%z), to_apply=%called.1
  %s = (f32[8]{0:T(128)}, f32[8]{0:T(128)}, u32[]) copy-start(%x)
  ROOT %e = f32[8]{0:T(128)} copy-done(%s)
}
"""
    turned, fused, moved = 3 * 4 * 600, 4 + 2 * 2 * 9 * 130, 4 * 8
    small = 4 * 6 + 4 + 4 * 5  # of the second fusion, the sum and the call
    padded = 3 * 4 * 200 * 128 + 4 + 2 * 9 * 8 * 256 + 4 * 128  # 3 of 128 lanes, 130 of 256
    results = read_results(text)
    assert results.bytes == turned + fused + moved + small
    assert results.padded == padded + small
    assert results.copied == turned + moved + 4 * 6


def test_a_lone_copy_is_one_where_the_compiler_wraps_it():
    x = jnp.ones((16, 24))
    text = jax.jit(lambda x: x.T.copy()).lower(x).compile().as_text()
    assert read_results(text) == (x.nbytes, x.nbytes, x.nbytes)


def test_memory_and_operations_of_a_product():
    n = 32
    x = jnp.ones((n, n))
    program = read_program(jax.jit(lambda x: x @ x + x, donate_argnums=0).lower(x).compile())
    assert program.arguments == program.outputs == program.donated == 4 * n * n
    assert program.peak == program.arguments + program.temporaries + program.code
    assert program.flops == pytest.approx(2 * n**3 + n * n, rel=0.01)


def test_a_loop_counts_as_often_as_it_runs():
    n, rounds = 16, 5

    def f(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, None, rounds)[0]

    traced = jax.jit(f).trace(jnp.ones((n, n)))
    jaxpr = traced.jaxpr.jaxpr
    assert product_flops(jaxpr) == rounds * 2 * n**3
    assert product_flops(jaxpr, in_loops=False) == 2 * n**3
    compiled = traced.lower().compile()
    once, all_rounds = read_program(compiled), read_program(compiled, jaxpr)
    assert all_rounds.flops == pytest.approx(rounds * once.flops)


def test_each_device_of_a_shard_map_counts():
    mesh = jax.sharding.AbstractMesh((4,), ("x",), (jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    f = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    jaxpr = jax.make_jaxpr(f)(jnp.ones((8, 5))).jaxpr
    assert product_flops(jaxpr) == 4 * 2 * (2 * 2) * 5


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("strides", [1, 2])
def test_operations_of_a_convolution_are_those_that_xla_counts(groups, strides):
    """Also of its gradient, which has zeros between the pixels where there are strides."""
    shapes = (2, 9, 8, 4), (3, 3, 4 // groups, 6)
    draw = np.random.default_rng(0).normal
    x, kernel = (jnp.asarray(draw(size=shape), jnp.float32) for shape in shapes)

    def f(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    for function in (f, jax.value_and_grad(lambda *both: (f(*both) ** 2).sum(), argnums=1)):
        traced = jax.jit(function).trace(x, kernel)
        program = read_program(traced.lower().compile())
        assert product_flops(traced.jaxpr.jaxpr) == pytest.approx(program.flops, rel=0.05)
