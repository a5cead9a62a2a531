"""The loss against plain NumPy, optax, and T5X's published formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dss_jax.core import config
from dss_jax.core.ids import LABEL, RATIONALE
from dss_jax.layouts.blocks import Block
from dss_jax.model.t5 import T5
from dss_jax.train import agreement
from dss_jax.train import loss as losses

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.filterwarnings("error")]

MODEL = config.T5Config(
    vocab_size=32,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
)


def _block(rng: np.random.Generator, role: int, lengths: list[int], width: int) -> Block:
    targets = np.zeros((len(lengths), width), np.int32)
    for row, length in zip(targets, lengths, strict=True):
        row[:length] = rng.integers(2, 32, length)
    inputs = rng.integers(2, 32, (len(lengths), 6)).astype(np.int32)
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return Block(inputs, shifted, targets, np.where(targets > 0, role, 0))


@pytest.fixture(scope="module")
def batch() -> tuple[Block, ...]:
    rng = np.random.default_rng(0)
    return (_block(rng, LABEL, [1, 2, 1, 3], 4), _block(rng, RATIONALE, [7, 9, 0, 8], 10))


@pytest.fixture(scope="module")
def model_and_params() -> tuple[T5, dict]:
    model = T5(MODEL)
    tokens = jnp.ones((1, 2), jnp.int32)
    import flax.linen as nn

    return model, nn.meta.unbox(model.init(jax.random.key(0), tokens, tokens)["params"])


def test_it_is_the_weighted_sum_of_each_tasks_own_mean(batch, model_and_params) -> None:
    model, params = model_and_params
    sums = losses.task_sums(model, params, batch, config.Loss(), None)
    means = []
    for block in batch:
        logits = np.asarray(
            model.apply({"params": params}, block.encoder_input_tokens, block.decoder_input_tokens),
            np.float64,
        )
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        real = block.decoder_target_tokens > 0
        picked = np.take_along_axis(log_probs, block.decoder_target_tokens[..., None], -1)[..., 0]
        means.append(-picked[real].mean())
    total = losses.weighted_loss(sums.loss, sums.tokens, (0.3, 0.7))
    np.testing.assert_allclose(total, 0.3 * means[0] + 0.7 * means[1], rtol=1e-5)
    # A token-summed mixture is something else: the label would weigh 7 tokens of 31.
    assert abs(float(total) - float(sums.loss.sum() / sums.tokens.sum())) > 1e-3


def test_tokens_are_counted_by_task(batch) -> None:
    np.testing.assert_array_equal(losses.count_tokens(batch), [7.0, 24.0])


def test_a_task_without_tokens_weighs_nothing(batch, model_and_params) -> None:
    model, params = model_and_params
    sums = losses.task_sums(model, params, batch[:1], config.Loss(), None)
    total = losses.weighted_loss(sums.loss, sums.tokens, (0.5, 0.5))
    np.testing.assert_allclose(total, 0.5 * sums.loss[0] / sums.tokens[0], rtol=1e-6)


def test_methods_without_rationales_weigh_the_label_fully() -> None:
    standard = config.Method(name="standard", label="gold", rationale=False)
    assert losses.task_weights(config.Loss(alpha=0.2), standard) == (1.0, 0.0)
    assert losses.task_weights(config.Loss(alpha=0.2), config.Method()) == (0.2, 0.8)


def test_cross_entropy_equals_optax() -> None:
    key = jax.random.key(1)
    logits = 4.0 * jax.random.normal(key, (3, 5, 11))
    targets = jax.random.randint(key, (3, 5), 0, 11)
    ours = losses.token_losses(logits, targets, config.Loss())
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_label_smoothing_and_z_loss_are_those_of_t5x() -> None:
    # t5x.losses.compute_weighted_cross_entropy, written out in NumPy.
    rng = np.random.default_rng(2)
    logits, targets = 3 * rng.normal(size=(2, 4, 9)), rng.integers(0, 9, (2, 4))
    smoothing, z_loss, size = 0.1, 1e-2, 9
    confidence, low = 1 - smoothing, smoothing / (size - 1)
    constant = -(confidence * np.log(confidence) + (size - 1) * low * np.log(low + 1e-20))
    soft = np.where(np.arange(size) == targets[..., None], confidence, low)
    log_z = np.log(np.exp(logits).sum(-1))
    expected = -(soft * (logits - log_z[..., None])).sum(-1) - constant + z_loss * log_z**2
    cfg = config.Loss(label_smoothing=smoothing, z_loss=z_loss)
    ours = losses.token_losses(jnp.asarray(logits, jnp.float32), jnp.asarray(targets), cfg)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


class TestAlpha:
    STEPS = 10

    def alphas(self, **fields: object) -> list[float]:
        cfg = config.Loss(**fields)
        found = [losses.alpha_at(cfg, jnp.asarray(k), self.STEPS) for k in range(self.STEPS)]
        return [round(float(alpha), 4) for alpha in found]

    def test_constant(self) -> None:
        assert self.alphas(alpha=0.3) == [0.3] * 10

    def test_linear_goes_from_one_end_to_the_other(self) -> None:
        found = self.alphas(alpha=1.0, alpha_schedule="linear", alpha_end=0.1)
        np.testing.assert_allclose(found, np.linspace(1.0, 0.1, 10), atol=1e-4)

    def test_cosine_is_optaxs(self) -> None:
        found = self.alphas(alpha=1.0, alpha_schedule="cosine", alpha_end=0.2)
        expected = optax.cosine_decay_schedule(1.0, self.STEPS - 1, alpha=0.2)
        np.testing.assert_allclose(found, [expected(k) for k in range(10)], atol=1e-4)

    def test_phases_follow_one_another(self) -> None:
        phases = ((0.3, 1.0), (0.4, 0.5), (0.3, 0.0))
        found = self.alphas(alpha_schedule="phased", alpha_phases=phases)
        assert found == [1.0] * 3 + [0.5] * 4 + [0.0] * 3

    def test_the_order_is_free_and_a_phase_may_be_empty(self) -> None:
        phases = ((0.5, 0.0), (0.0, 0.7), (0.5, 1.0))
        found = self.alphas(alpha_schedule="phased", alpha_phases=phases)
        assert found == [0.0] * 5 + [1.0] * 5


def _numbered(block: Block, numbers: list[int]) -> Block:
    of_rows = np.broadcast_to(np.array(numbers, np.int32)[:, None], block.decoder_roles.shape)
    return block._replace(decoder_examples=of_rows)


def _expected_disagreement(model: T5, params: dict, batch: tuple[Block, ...]) -> float:
    """As Chen et al.'s released code has it, in NumPy, without the padding."""
    pooled = []
    for block in batch:
        logits = np.asarray(
            model.apply({"params": params}, block.encoder_input_tokens, block.decoder_input_tokens),
            np.float64,
        )
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        real = (block.decoder_target_tokens > 0)[..., None]
        pooled.append(np.where(real, probs, 0.0).max(axis=1))
    label, rationale = pooled
    log_probs = rationale - np.log(np.exp(rationale).sum(-1, keepdims=True))
    both = (label.max(-1) > 0) & (rationale.max(-1) > 0)
    return float(-(label * log_probs).sum(-1)[both].mean())


def test_the_mutual_information_term_is_that_of_the_released_code(batch, model_and_params) -> None:
    model, params = model_and_params
    numbered = tuple(_numbered(block, [0, 1, 2, 3]) for block in batch)
    sums = losses.task_sums(model, params, numbered, config.Loss(), None, 4)
    pairs = agreement.count_pairs(numbered, 4)
    assert float(pairs) == 3  # The third has no rationale.
    expected = _expected_disagreement(model, params, batch)
    np.testing.assert_allclose(sums.disagreement / pairs, expected, rtol=1e-5)

    # The same examples in another order, and in one block of both roles.
    label, rationale = batch
    order = [2, 0, 3, 1]
    moved = Block(*(x[order] if x is not None else None for x in rationale))
    mixed = (_numbered(label, [0, 1, 2, 3]), _numbered(moved, order))
    sums = losses.task_sums(model, params, mixed, config.Loss(), None, 4)
    np.testing.assert_allclose(sums.disagreement / pairs, expected, rtol=1e-5)


def test_the_label_is_taken_as_given(batch, model_and_params) -> None:
    model, params = model_and_params
    numbered = tuple(_numbered(block, [0, 1, 2, 3]) for block in batch)

    def loss(offset: jax.Array, role: int) -> jax.Array:
        pooled = [
            agreement.pooled(
                model.apply({"params": params}, b.encoder_input_tokens, b.decoder_input_tokens)
                + offset[None, None] * float(k == role),
                b,
                4,
            )
            for k, b in enumerate(numbered)
        ]
        return agreement.disagreement(jnp.maximum(*pooled))

    offset = jnp.zeros(32).at[5].set(0.1)
    assert not np.any(jax.grad(loss)(offset, 0)), "no gradient through the label"
    assert np.any(jax.grad(loss)(offset, 1))
