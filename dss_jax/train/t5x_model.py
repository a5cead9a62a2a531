"""The method's loss in T5X: a model and a trainer for `t5x.train`. Imports T5X, so TensorFlow too.

Shape letters: B rows, T target length, V vocabulary, K = 2 tasks (label, rationale).
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp
from flax.training import common_utils
from t5x import losses, models, trainer

from dss_jax.core.ids import LABEL, RATIONALE, ROLES
from dss_jax.train.loss import MIN_COUNT, hits

Batch = Mapping[str, jax.Array]
TASK_TOKENS = "task_tokens"


def task_tokens(batch: Batch) -> jax.Array:
    """Real target tokens of each task in the whole batch: float32 [K].

    Under T5X's partitioner a batch is one global array, so this counts those of all hosts.
    """
    if TASK_TOKENS in batch:
        return batch[TASK_TOKENS][0]
    roles_BxT = batch["decoder_roles"]
    return jnp.stack([jnp.sum(roles_BxT == role) for role in (LABEL, RATIONALE)]).astype(
        jnp.float32
    )


def with_task_tokens(batch: Batch) -> dict[str, jax.Array]:
    """The batch with its counts in every row [B, K], so that a microbatch still has them."""
    rows = next(iter(batch.values())).shape[0]
    counts = jnp.broadcast_to(task_tokens(batch), (rows, len(ROLES)))
    return {**batch, TASK_TOKENS: counts}


class DistillationModel(models.EncoderDecoderModel):
    """`t5x.models.EncoderDecoderModel` with the loss of `dss_jax.train.loss`.

    The weights are those of `decoder_loss_weights`, the tasks those of `decoder_roles`, both of
    `dss_jax.data.seqio_pairs.PairedFeatureConverter`. `loss_normalizing_factor` must stay None.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self._loss_normalizing_factor is not None:
            raise ValueError(
                "DistillationModel.loss_normalizing_factor must be None, not "
                f"{self._loss_normalizing_factor!r}: the loss is divided by each task's tokens."
            )

    def _token_losses(
        self, logits_BxTxV: jax.Array, targets_BxT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # As in `losses.compute_weighted_cross_entropy`, which gives the sum only.
        vocab_size = logits_BxTxV.shape[-1]
        high = 1.0 - self._label_smoothing
        low = (1.0 - high) / (vocab_size - 1)
        entropy = -(high * jnp.log(high) + (vocab_size - 1) * low * jnp.log(low + 1e-20))
        soft_BxTxV = common_utils.onehot(targets_BxT, vocab_size, on_value=high, off_value=low)
        loss_BxT, z_loss_BxT = losses.cross_entropy_with_logits(
            logits_BxTxV, soft_BxTxV, z_loss=self._z_loss
        )
        return loss_BxT - entropy, z_loss_BxT

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The loss, float32 scalar, and T5X's metrics with those of each task.

        Metrics beside T5X's are `<task>/loss` (nats a token) and `<task>/token_accuracy` (a
        share). T5X's losses a token are left out: the loss is a mean already.
        """
        logits_BxTxV = self._compute_logits(params, batch, dropout_rng)
        targets_BxT, roles_BxT = batch["decoder_target_tokens"], batch["decoder_roles"]
        loss_BxT, z_loss_BxT = self._token_losses(logits_BxTxV, targets_BxT)
        counts_K = jnp.maximum(task_tokens(batch), MIN_COUNT)
        # Padding has role 0 and weight 0.
        weights_BxT = batch["decoder_loss_weights"] / jnp.where(
            roles_BxT == RATIONALE, counts_K[1], counts_K[0]
        )
        loss, z_loss = jnp.sum(loss_BxT * weights_BxT), jnp.sum(z_loss_BxT * weights_BxT)
        metrics = self._compute_metrics(
            logits=logits_BxTxV,
            targets=targets_BxT,
            mask=roles_BxT > 0,
            loss=loss,
            z_loss=z_loss,
            segment_ids={
                "encoder_input_tokens": batch["encoder_input_tokens"] != 0,
                "decoder_target_tokens": targets_BxT != 0,
            },
        )
        metrics = {k: m for k, m in metrics.items() if "_target_token" not in k or "/" in k}
        hits_BxT = hits(logits_BxTxV, targets_BxT)
        for role, name in enumerate(ROLES, 1):
            own = roles_BxT == role
            for metric, values in (("loss", loss_BxT), ("token_accuracy", hits_BxT)):
                metrics[f"{name}/{metric}"] = clu.metrics.Average(
                    total=jnp.sum(jnp.where(own, values, 0.0)),
                    count=jnp.maximum(jnp.sum(own), MIN_COUNT),
                )
        return loss, metrics


class DistillationTrainer(trainer.Trainer):
    """`t5x.trainer.Trainer` whose microbatches divide by the token counts of the whole batch, so
    that the summed gradients are the batch's. Without microbatches it does what T5X's own does.
    """

    @cached_property
    def _partitioned_train_step(self) -> Any:
        def train_step(train_state: Any, batch: Batch) -> tuple[Any, Any]:
            return trainer.train_with_lr(
                train_state,
                with_task_tokens(batch),
                learning_rate=self._learning_rate_fn(train_state.step),
                dropout_rng=self._get_step_rng(train_state.step),
                model=self._model,
                num_microbatches=self._num_microbatches,
                weight_metrics_computer=self._weight_metrics_computer,
                data_partition_spec=self._partitioner.data_partition_spec,
            )

        rows = self._partitioner.data_partition_spec
        return self._partitioner.partition(
            train_step,
            in_axis_resources=(self._train_state_axes, rows),
            out_axis_resources=(self._train_state_axes, None),
            donate_argnums=(0,),
        )


def without_optimizer_state(
    checkpoint: Mapping[str, Any], state: Mapping[str, Any], *, is_resuming: bool = False
) -> Mapping[str, Any]:
    """T5X's `RestoreStateTransformationFn` for a checkpoint of another optimiser.

    With `fallback_to_scratch` T5X fills in a fresh optimiser state; a run that goes on keeps its.
    """
    del state
    if is_resuming:
        return checkpoint
    kept = {name: value for name, value in checkpoint["state"].items() if name != "param_states"}
    return {**checkpoint, "state": kept}
