"""Properties that the vision transformers share: published values, masks, precision, memory."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training.gradients import build_gradient, build_loss
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_train_step
from gnp.training.tasks import classification
from model import ModelError, get_model
from model.cait import CaiT
from model.swin import Swin
from model.transformer import (
    Block,
    PatchEmbed,
    SelfAttention,
    growing_rates,
    softmax,
    split_heads,
)
from model.vit import ViT
from optimizer import gradient_norm_penalty
from tests.marks import quick_first
from tests.trees import assert_trees_close

REFERENCE = Path(__file__).resolve().parent.parent / "reference" / "models"
NOTHING_DROPPED = {
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
    "stochastic_depth_rate": 0.0,
}
# The published models at the archives' sizes.
PUBLISHED = {
    "vit": ViT(10, patch=8, embed_dim=48, depth=2, num_heads=3, **NOTHING_DROPPED),
    "swin": Swin(
        10,
        patch_size=2,
        window_size=4,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
        **NOTHING_DROPPED,
    ),
    "cait": CaiT(10, depth=2, patch_size=8, embed_dim=48, num_heads=3, **NOTHING_DROPPED),
}
# As small as can be with everything in it, for images of 16 x 16 pixels.
SMALL = {
    "vit": functools.partial(ViT, 5, patch=4, embed_dim=16, depth=2, num_heads=2),
    "swin": functools.partial(
        Swin, 5, patch_size=2, window_size=4, embed_dim=8, depths=(2, 1), num_heads=(2, 4)
    ),
    "cait": functools.partial(
        CaiT, 5, depth=1, patch_size=4, embed_dim=16, num_heads=2, layer_scale=0.1
    ),
}
FAMILIES = tuple(SMALL)
# Of the small ones, CaiT's two of class-attention among them.
BLOCKS = {"vit": 2, "swin": 3, "cait": 3}


def images(count=4, side=16):
    return np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)


@functools.cache
def weights(family):
    """Parameters of the size of trained ones, drawn without compiling the initializers."""
    module = SMALL[family]()
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images(), train=False))
    draw = np.random.default_rng(1)

    def fill(path, leaf):
        start = {"scale": 1.0, "gamma_1": 0.1, "gamma_2": 0.1}.get(path[-1].key, 0.0)
        deviation = 0.2 if path[-1].key == "kernel" else 0.02
        return draw.normal(start, deviation, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes["params"])


def operations(function, *arguments):
    """Every primitive operation of a function, those of functions in it included."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in equation.params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from walk(inner)

    return list(walk(jax.make_jaxpr(function)(*arguments).jaxpr))


def published(family):
    """The archive, and its parameters under this project's names."""
    with np.load(REFERENCE / f"{family}.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    params = {}
    for name, value in arrays.items():
        if not name.startswith("param/"):
            continue
        *path, leaf = name.removeprefix("param/").split(".")
        if leaf == "weight":
            leaf = "scale" if value.ndim == 1 else "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        modules = []
        for part in path:
            if part.isdigit():
                modules[-1] += f"_{part}"
            else:
                modules.append(part)
        inner = functools.reduce(lambda tree, key: tree.setdefault(key, {}), modules, params)
        inner[leaf] = value
    return arrays, params


@pytest.mark.parametrize("family", quick_first(tuple(FAMILIES)))
def test_logits_of_the_published_models(family):
    arrays, params = published(family)
    module, x = PUBLISHED[family], arrays["input"].transpose(0, 2, 3, 1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    for train, expected in ((False, arrays["logits_eval"]), (True, arrays["logits_train"])):
        logits = jax.jit(module.apply, static_argnames="train")({"params": params}, x, train=train)
        np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_close_and_ends_in_float32(family):
    def logits(dtype):
        module = SMALL[family](**NOTHING_DROPPED, dtype=dtype)
        return jax.jit(lambda params: module.apply({"params": params}, images(), train=False))

    params = weights(family)
    exact, rounded = logits(jnp.float32)(params), logits(jnp.bfloat16)(params)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()
    module = SMALL[family](dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images(), train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("family", quick_first(tuple(FAMILIES)))
def test_matrix_products_are_of_the_dtype(family):
    module = SMALL[family](dtype=jnp.bfloat16)
    products = [
        equation.outvars[0].aval.dtype
        for equation in operations(
            lambda params: module.apply({"params": params}, images(), train=False),
            weights(family),
        )
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    # All but the head's.
    assert products.count(jnp.bfloat16) == len(products) - 1
    assert products[-1] == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_remat_and_random_masks(family):
    # Of what is random, only stochastic depth: it compiles fastest, and all share a key.
    rates = {**NOTHING_DROPPED, "stochastic_depth_rate": 0.4}

    def value_and_gradient(remat):
        module = SMALL[family](**rates, remat=remat)

        def loss(params, seed):
            rngs = {"dropout": jax.random.key(seed)}
            logits = module.apply({"params": params}, images(), train=True, rngs=rngs)
            return jnp.sum(jnp.square(logits)), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    params, plain = weights(family), value_and_gradient(remat=False)
    (_, logits), gradient = plain(params, 0)
    # The same key drops the same, another key something else.
    np.testing.assert_array_equal(logits, plain(params, 0)[0][1])
    assert not np.allclose(logits, plain(params, 1)[0][1])
    # Computing the activations again changes nothing, the masks included.
    (_, again), gradient_again = value_and_gradient(remat=True)(params, 0)
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-5)
    assert_trees_close(gradient_again, gradient, 1e-4, 1e-4)


@pytest.mark.parametrize("family", quick_first(FAMILIES))
def test_remat_is_of_each_block_and_keeps_the_start(family):
    def kernel(remat):
        module = SMALL[family](remat=remat)

        def start():
            params = module.init(jax.random.key(0), images(), train=False)["params"]
            block = params["layers_0"] if family == "swin" else params
            return block["blocks_0"]["mlp"]["fc1"]["kernel"]

        return jax.jit(start)()

    np.testing.assert_array_equal(kernel(remat=True), kernel(remat=False))
    module = SMALL[family](remat=True)
    names = [
        equation.primitive.name
        for equation in operations(
            lambda params: module.apply({"params": params}, images(), train=False),
            weights(family),
        )
    ]
    assert names.count("remat2") + names.count("checkpoint") == BLOCKS[family]


@pytest.mark.parametrize("family", quick_first(tuple(FAMILIES)))
def test_what_is_drawn(family):
    def draws(**rates):
        module = SMALL[family](**{**NOTHING_DROPPED, **rates})
        equations = operations(
            lambda params, key: module.apply(
                {"params": params}, images(), train=True, rngs={"dropout": key}
            ),
            weights(family),
            jax.random.key(0),
        )
        return sum(equation.primitive.name == "random_bits" for equation in equations)

    blocks = BLOCKS[family]
    assert draws() == 0
    if family == "cait":
        # Its last two blocks, of class-attention, drop nothing.
        blocks -= 2
    # Attention's output and the two of the MLP, in each block; and what enters the first.
    assert draws(dropout_rate=0.1) == 3 * blocks + 1
    assert draws(attention_dropout_rate=0.1) == blocks
    # The first block's rate is 0, but in CaiT, whose last two blocks have none.
    random = {"vit": 1, "swin": 2, "cait": 1}[family]
    assert draws(stochastic_depth_rate=0.1) == 2 * random


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_stochastic_depth_goes_round_whole_examples(family):
    # One block of self-attention whose branches, where they are not left out, are added.
    depth = {"depths": (2,), "num_heads": (2,)} if family == "swin" else {"depth": 2}
    module = SMALL[family](
        dropout_rate=0.0, attention_dropout_rate=0.0, stochastic_depth_rate=0.5, **depth
    )
    x = np.repeat(images(1), 64, axis=0)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.3, leaf.shape).astype("f4"), params)
    logits = jax.jit(
        lambda: module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)})
    )()
    # Equal images give as many results as there are ways to leave branches out: in ViT and Swin
    # the second block's two, in CaiT both blocks' two.
    results = len(np.unique(np.round(np.asarray(logits)[:, 0], 4)))
    assert results == (16 if family == "cait" else 4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_penalized_step_is_finite_and_changes_everything(family):
    module = SMALL[family](**{**NOTHING_DROPPED, "stochastic_depth_rate": 0.4})
    _, apply = from_linen(module, lambda x: x, (16, 16, 3))
    optimizer = optax.chain(gradient_norm_penalty(0.05, 0.8), optax.adam(1e-3))
    objective = classification.objective("softmax_cross_entropy")
    gradient = build_gradient(build_loss(apply, objective))
    step = jax.jit(build_train_step(lambda _: gradient, optimizer, penalize=True))
    params = weights(family)
    before = TrainState(params, {}, optimizer.init(params))
    batch = {"input": images(8), "label": np.arange(8, dtype=np.int32) % 5}
    after, metrics = step(before, batch, jax.random.key(1), np.uint32(1))
    assert metrics["finite"] == 1
    new_leaves = jax.tree.leaves(after.params)
    for (path, old), new in zip(jax.tree.leaves_with_path(params), new_leaves, strict=True):
        assert new.dtype == old.dtype
        assert np.isfinite(new).all(), path
        assert not np.array_equal(new, old), path


@pytest.mark.parametrize("family", FAMILIES)
def test_no_transpose_of_the_scores_in_the_forward_pass(family):
    module, params = PUBLISHED[family], published(family)[1]

    def logits(params):
        return module.apply({"params": params}, np.zeros((1, 32, 32, 3), "f4"), train=True)

    equations = operations(logits, params)
    transposed = [equation for equation in equations if equation.primitive.name == "transpose"]
    # An attention's output, once a block; Swin's tables, and its merging.
    assert len(transposed) == {"vit": 2, "swin": 2 * 4 + 1, "cait": 2}[family]
    for equation in transposed:
        *_, last = equation.params["permutation"]
        # Channels stay together; those of the tables are few.
        assert equation.outvars[0].aval.ndim == 2 or last == equation.outvars[0].aval.ndim - 1


def _encoder(tokens, channels, heads=0):
    return 12 * tokens * channels**2 + 2 * tokens**2 * (channels + heads**2)


@pytest.mark.parametrize(
    ("name", "params", "count"),
    [
        ("ViT_S16", {"depth": 2}, 196 * 768 * 384 + 2 * _encoder(197, 384)),
        (
            "CaiT_S2",
            {},
            196 * 768 * 384
            + 2 * _encoder(196, 384, heads=8)
            # Class-attention: keys and values of all, the rest for one token.
            + 2 * (2 * 197 * 384**2 + 2 * 197 * 384 + 10 * 384**2),
        ),
        pytest.param("Swin_Tiny", {}, 4.5e9, marks=pytest.mark.slow),  # as the paper has it
    ],
)
def test_number_of_operations(name, params, count):
    module = get_model(name, 1000, **params)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    program = jax.jit(lambda variables, x: module.apply(variables, x, train=False))
    flops = program.lower(variables, x).cost_analysis()["flops"]
    # Two for each multiplication and its addition; norms, softmax and GELU are the rest.
    assert flops / 2 == pytest.approx(count, rel=0.05)


def test_patches_are_cut_row_by_row():
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    kernel = np.random.default_rng(0).normal(size=(2, 2, 3, 5)).astype(np.float32)
    params = {"proj": {"kernel": kernel, "bias": np.arange(5, dtype=np.float32)}}
    y = PatchEmbed(5, 2).apply({"params": params}, x)
    assert y.shape == (2, 2, 3, 5)
    patch = x[1, 2:4, 4:6]
    expected = np.tensordot(patch, kernel, 3) + np.arange(5)
    np.testing.assert_allclose(y[1, 1, 2], expected, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_that_does_not_divide_into_patches(family):
    module = SMALL[family]()
    with pytest.raises(ModelError, match=r"an image of 16 x 15 pixels .* must be multiples of"):
        jax.eval_shape(
            lambda: module.init(jax.random.key(0), jnp.zeros((1, 16, 15, 3)), train=False)
        )


@pytest.mark.parametrize(
    "rate", ["dropout_rate", "attention_dropout_rate", "stochastic_depth_rate"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_rates_out_of_range(family, rate):
    with pytest.raises(ModelError, match=rf"model_params.{rate} = 1.0: must be at least 0 and"):
        SMALL[family](**{rate: 1.0})


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_out_of_range(family):
    with pytest.raises(ModelError, match="model_params.num_heads = 3: must divide the"):
        SMALL[family](num_heads=(3, 4) if family == "swin" else 3)
    with pytest.raises(ModelError, match="model_params.mlp_ratio = 0: must be at least 1"):
        SMALL[family](mlp_ratio=0)
    with pytest.raises(ModelError, match="variant = 'paper': must be one of timm, gnp"):
        SMALL[family](variant="paper")


@pytest.mark.parametrize("ratio", [float("nan"), float("inf")])
def test_an_mlp_without_a_width(ratio):
    with pytest.raises(ModelError, match="model_params.mlp_ratio = .*: must be at least 1"):
        SMALL["vit"](mlp_ratio=ratio)


def test_growing_rates_of_one_block():
    assert growing_rates(0.3, 1) == (0.0,)


def test_softmax_is_computed_in_float32():
    scores = jnp.arange(300, dtype=jnp.bfloat16).reshape(1, 300) / 300
    weights = softmax(scores, jnp.float32)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


def test_heads_come_part_by_part():
    x = np.arange(24).reshape(1, 24)
    query, key, value = split_heads(jnp.asarray(x), 3, 2)
    np.testing.assert_array_equal(key, x[:, 8:16].reshape(1, 2, 4))
    np.testing.assert_array_equal(value[0, 1], np.arange(20, 24))
    assert query.shape == (1, 2, 4)


def test_stochastic_depth_drops_the_branches_of_whole_examples():
    attention = functools.partial(SelfAttention, 2, 0.0, 0.0, jnp.float32)
    block = Block(attention, 1, 0.0, 0.5, jnp.float32)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 3, 4)).astype("f4")
    shapes = jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype("f4"), shapes)

    @functools.partial(jax.jit, static_argnames="train")
    def kept(seed, train):
        y = block.apply(variables, x, train=train, rngs={"dropout": jax.random.key(seed)})
        return (y == x).all((1, 2))

    # Both branches of a quarter.
    first, again, other = (kept(seed, train=True) for seed in (1, 1, 2))
    assert 5 < first.sum() < 30
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not kept(1, train=False).any()
