"""What `faults_peers.py` asks of each library: a short training run that saves every 2 steps, keeps
the latest 3, and goes on from its folder as that library's documentation says.

All are of about the same size, and with the same settings all end with the same arrays each time.
"""

import contextlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib import metadata, util
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

STEPS, EVERY, KEEP = 6, 2, 3
STOPPED = 4
"""Steps of a whole run, between saves, checkpoints kept; after how many steps one was stopped."""

WIDTH, LAYERS = 512, 3

Arrays = dict[str, np.ndarray]
Told = Callable[[], object]
"""Called just before a save begins."""


class Peer(ABC):
    """One library. JAX and PyTorch begin to work in children only: `prepare` imports."""

    name: str
    modules: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]]

    def missing(self) -> list[str]:
        """Modules that are not installed here."""
        return [name for name in self.modules if util.find_spec(name) is None]

    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in self.packages}

    @abstractmethod
    def prepare(self, shared: Path) -> None:
        """Imports; `shared` is a folder for what all runs share."""

    @abstractmethod
    def train(self, folder: Path, steps: int, told: Told) -> Arrays:
        """Trains, or goes on from the latest checkpoint, up to a step: parameters and optimizer."""

    def read(self, folder: Path) -> Arrays:
        """What the last checkpoint of a finished run holds."""
        return self.train(folder, STEPS, lambda: None)

    def checkpoints(self, folder: Path) -> dict[int, Path]:
        """Step -> folder of each checkpoint."""
        found = (p for p in self.saved_in(folder).iterdir() if p.name[-1:].isdigit())
        return {int(p.name.rpartition("_")[2].rpartition("-")[2]): p for p in sorted(found)}

    def saved_in(self, folder: Path) -> Path:
        return folder

    @abstractmethod
    def keep_best(self, folder: Path, losses: Sequence[float]) -> tuple[int | None, set[int]]:
        """Saves a checkpoint with each loss, of steps 1, 2, ..., with the library's way to keep the
        latest and the best (lowest): the step that it calls the best, None where it names none, and
        those that are left.
        """

    def train_on_nan(self, folder: Path) -> Arrays | None:
        """As `train`, where the loss of one batch is NaN; None: the library has no loop."""
        return None


def _first() -> dict[str, Any]:
    """Parameters and the gradient's seeds."""
    rng = np.random.default_rng(0)
    return {
        f"layer_{i}": {"kernel": rng.standard_normal((WIDTH, WIDTH), np.float32)}
        for i in range(LAYERS)
    }


def _flat(tree: Any) -> Arrays:
    import jax

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _gradient(params: Any, step: int) -> Any:
    """Depends on the parameters, so that an error stays."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda x: jnp.sin(3 * x + step), params)


class Orbax(Peer):
    """`CheckpointManager` with `StandardSave` and `StandardRestore` of its latest step."""

    name, modules = "Orbax", ("orbax.checkpoint", "optax")
    packages = ("orbax-checkpoint", "tensorstore", "jax")

    def prepare(self, shared: Path) -> None:
        import jax
        import optax
        import orbax.checkpoint

        assert jax
        self._orbax, self._adam = orbax.checkpoint, optax.adam(1e-2)

    def _manager(self, folder: Path, **options: Any) -> Any:
        ocp = self._orbax
        return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options))

    def train(self, folder: Path, steps: int, told: Told) -> Arrays:
        import jax
        import jax.numpy as jnp
        import optax

        args, params = self._orbax.args, jax.tree.map(jnp.asarray, _first())
        state, step = {"params": params, "optimizer": self._adam.init(params)}, 0
        with closing(self._manager(folder, max_to_keep=KEEP)) as manager:
            if (latest := manager.latest_step()) is not None:
                abstract = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
                )
                state = manager.restore(latest, args=args.StandardRestore(abstract))
                step = latest
            while step < steps:
                gradient = _gradient(state["params"], step)
                updates, optimizer = self._adam.update(gradient, state["optimizer"])
                params = optax.apply_updates(state["params"], updates)
                state, step = {"params": params, "optimizer": optimizer}, step + 1
                if step % EVERY == 0:
                    told()
                    manager.save(step, args=args.StandardSave(state))
            manager.wait_until_finished()
        return _flat(state)

    def keep_best(self, folder: Path, losses: Sequence[float]) -> tuple[int | None, set[int]]:
        options = {"best_fn": lambda m: m["loss"], "best_mode": "min", "max_to_keep": 2}
        with closing(self._manager(folder, **options)) as manager:
            for step, loss in enumerate(losses, 1):
                state = {"x": np.full(8, step, np.float32)}
                args = self._orbax.args.StandardSave(state)
                manager.save(step, args=args, metrics={"loss": loss})
            manager.wait_until_finished()
            return manager.best_step(), set(manager.all_steps())


class T5X(Peer):
    """`checkpoints.Checkpointer`, `restore()` of the latest; `SaveBestCheckpointer`."""

    name, modules = "T5X", ("t5x", "optax", "tensorflow")
    packages = ("t5x", "tensorstore", "jax")

    def prepare(self, shared: Path) -> None:
        from t5x import checkpoints, optimizers, partitioning, train_state

        self._t5x = checkpoints, optimizers, partitioning, train_state

    def _state(self, params: dict[str, Any]) -> Any:
        import flax
        import jax
        import jax.numpy as jnp
        from flax.linen.partitioning import AxisMetadata

        _, optimizers, _, train_state = self._t5x
        axes = {name: {"kernel_axes": AxisMetadata(("embed", "mlp"))} for name in params}
        variables = {"params": jax.tree.map(jnp.asarray, params), "params_axes": axes}
        state = train_state.FlaxOptimTrainState.create(
            optimizers.adam(1e-2), flax.core.freeze(variables)
        )
        return state.replace_step(jnp.asarray(0))

    def train(self, folder: Path, steps: int, told: Told) -> Arrays:
        checkpoints, _, partitioning, _ = self._t5x
        state, partitioner = self._state(_first()), partitioning.PjitPartitioner(num_partitions=1)
        folder.mkdir(exist_ok=True)
        checkpointer = checkpoints.Checkpointer(state, partitioner, str(folder), keep=KEEP)
        if checkpointer.latest_step() is not None:
            state = checkpointer.restore()
        while int(state.step) < steps:
            gradient = _gradient(state.params, int(state.step))
            state = state.apply_gradient(gradient, learning_rate=1e-2)
            if int(state.step) % EVERY == 0:
                told()
                checkpointer.save(state)
        return _flat(state.state_dict())

    def keep_best(self, folder: Path, losses: Sequence[float]) -> tuple[int | None, set[int]]:
        import tensorflow as tf

        checkpoints, _, partitioning, _ = self._t5x
        state = self._state({"layer_0": {"kernel": np.zeros((8, 8), np.float32)}})
        folder.mkdir()
        checkpointer = checkpoints.SaveBestCheckpointer(
            state,
            partitioning.PjitPartitioner(num_partitions=1),
            str(folder),
            keep=1,
            metric_name_to_monitor="eval/loss",
            metric_mode="min",
        )
        writer = tf.summary.create_file_writer(str(folder / "eval"))
        for step, loss in enumerate(losses, 1):
            with writer.as_default():
                tf.summary.scalar("loss", loss, step)
            writer.flush()
            state = state.apply_gradient(_gradient(state.params, step), learning_rate=1e-2)
            checkpointer.save(state)
        return None, set(map(int, checkpointer.all_steps()))


class Trainer(Peer):
    """`transformers.Trainer` with a small T5; `resume_from_checkpoint=True` where there is one."""

    name, modules = "Trainer", ("transformers", "torch", "accelerate")
    packages = ("transformers", "torch", "accelerate", "safetensors")
    _config: Any
    _trainer: Any

    def prepare(self, shared: Path) -> None:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        os.environ["WANDB_DISABLED"] = "true"
        import torch
        from transformers import T5Config, T5ForConditionalGeneration, trainer

        self._torch, self._trainer = torch, trainer
        self._config, self._model = T5Config, T5ForConditionalGeneration

    def _make(self, folder: Path, steps: int, told: Told, small: bool = False, **more: Any) -> Any:
        torch = self._torch
        torch.set_num_threads(1)
        torch.manual_seed(0)
        size = 16 if small else 256
        shape = self._config(
            **{"vocab_size": 64 if small else 1024, "d_model": size, "d_ff": size, "d_kv": 16},
            **{"num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
        )
        rows = torch.randint(2, 60, (64, 8), generator=torch.Generator().manual_seed(1))
        data = [{"input_ids": row, "labels": row[:4]} for row in rows]
        arguments: dict[str, Any] = {
            "output_dir": str(folder),
            "max_steps": steps,
            "save_steps": EVERY,
            "save_total_limit": KEEP,
            "lr_scheduler_type": "constant",
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "report_to": [],
            "disable_tqdm": True,
            "logging_steps": 1,
            "use_cpu": True,
        } | more
        judge, factors = arguments.pop("judge", None), iter(arguments.pop("factors", ()))

        class Own(self._trainer.Trainer):  # type: ignore[misc, name-defined]
            def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
                told()
                super()._save_checkpoint(*args, **kwargs)

            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(*args, **kwargs)
                return loss * next(factors, 1.0) if self.model.training else loss

        return Own(
            model=self._model(shape),
            args=self._trainer.TrainingArguments(**arguments),
            train_dataset=data,
            eval_dataset=data[:4],
            compute_metrics=judge,
        )

    def _arrays(self, model: Any, optimizer: dict[str, Any]) -> Arrays:
        arrays = {n: x.detach().numpy() for n, x in model.named_parameters()}
        for i, state in optimizer["state"].items():
            arrays |= {f"optimizer/{i}/{n}": np.asarray(x) for n, x in state.items()}
        return arrays

    def train(self, folder: Path, steps: int, told: Told) -> Arrays:
        trainer = self._make(folder, steps, told)
        last = folder.is_dir() and self._trainer.get_last_checkpoint(str(folder))
        trainer.train(resume_from_checkpoint=bool(last) or None)
        return self._arrays(trainer.model, trainer.optimizer.state_dict())

    def keep_best(self, folder: Path, losses: Sequence[float]) -> tuple[int | None, set[int]]:
        left = iter(losses)
        trainer = self._make(
            folder,
            len(losses),
            lambda: None,
            small=True,
            judge=lambda _: {"judged": next(left)},
            **{"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 2},
            **{"metric_for_best_model": "judged", "greater_is_better": False},
            **{"load_best_model_at_end": True},
        )
        trainer.train()
        best = trainer.state.best_model_checkpoint
        return best and int(best.rpartition("-")[2]), set(self.checkpoints(folder))

    def read(self, folder: Path) -> Arrays:
        last = self.checkpoints(folder)[STEPS]
        model = self._model.from_pretrained(last)
        state = self._torch.load(last / "optimizer.pt", weights_only=True)
        return self._arrays(model, state)

    def train_on_nan(self, folder: Path) -> Arrays:
        factors = [1.0] * EVERY + [float("nan")]
        trainer = self._make(folder, STEPS, lambda: None, small=True, factors=factors)
        trainer.train()
        return self._arrays(trainer.model, trainer.optimizer.state_dict())


class Ours(Peer):
    """A run of `dss train`: `single.train`, with the program of three arrays of tests/toy.py."""

    name, modules, packages = "dss-jax", ("dss_jax", "pytest"), ("orbax-checkpoint", "jax")

    def versions(self) -> dict[str, str]:
        from dss_jax import __version__

        return {"dss-jax": __version__, **super().versions()}

    def prepare(self, shared: Path) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        import conftest  # noqa: F401 - its settings of JAX
        import toy

        os.environ["DSS_CACHE_DIR"] = str(shared / "cache")
        self._toy, self._store = toy, shared / "store"
        from dss_jax.train.checkpoint import Checkpoints

        real = Checkpoints.save

        def save(checkpoints: Checkpoints, *args: Any) -> None:
            self._told()
            real(checkpoints, *args)

        Checkpoints.save = save  # type: ignore[assignment, method-assign]

    def saved_in(self, folder: Path) -> Path:
        return folder / "checkpoints"

    @contextlib.contextmanager
    def _ready(self) -> Iterator[Any]:
        """The token store, and programs of three arrays."""
        from dss_jax.data.store import open_store

        if not self._store.is_dir():
            self._toy.make_store(self._store, np.random.default_rng(0))
        with self._toy.linear_programs():
            yield open_store(self._store)

    def train(self, folder: Path, steps: int, told: Told) -> Arrays:
        import pytest

        from dss_jax.train.loop import Interrupted

        self._told = told
        with self._ready() as store, pytest.MonkeyPatch.context() as patch:
            if steps < STEPS:
                self._toy.interrupt_before(patch, steps - 1)
                with contextlib.suppress(Interrupted):
                    self._train(folder, store)
                return {}
            self._train(folder, store)
            return self._saved(folder)

    def _train(self, folder: Path, store: Any) -> None:
        from dataclasses import replace

        from dss_jax.core import config
        from dss_jax.core.scoring import TEXT_ACCURACY
        from dss_jax.run import single

        train = config.Train(
            steps=STEPS, log_every=1, output_dir=str(folder), keep_checkpoints=KEEP
        )
        model = replace(self._toy.MODEL, emb_dim=WIDTH)
        evaluate = config.Evaluate(every=EVERY, max_decode_length=5)
        single.train(
            self._toy.make_run(train=train, model=model, evaluate=evaluate), store, TEXT_ACCURACY
        )

    def _saved(self, folder: Path) -> Arrays:
        import orbax.checkpoint as ocp

        last = self.checkpoints(folder)[STEPS].absolute()
        with ocp.PyTreeCheckpointer() as reader:
            return _flat({item: reader.restore(last / item) for item in ("params", "optimizer")})

    def keep_best(self, folder: Path, losses: Sequence[float]) -> tuple[int | None, set[int]]:
        from dss_jax.train.checkpoint import Checkpoints

        with closing(Checkpoints(folder)) as checkpoints:
            for step, loss in enumerate(losses, 1):
                checkpoints.save_params({"x": np.full(8, step, np.float32)}, step, -loss)
            checkpoints.wait()
            return checkpoints.best_step(), set(checkpoints.steps())

    def read(self, folder: Path) -> Arrays:
        return self._saved(folder)

    def train_on_nan(self, folder: Path) -> Arrays:
        import pytest
        from test_bad_steps import poison

        self._told = lambda: None
        with self._ready() as store, pytest.MonkeyPatch.context() as patch:
            poison(patch, steps={EVERY})
            self._train(folder, store)
        return self._saved(folder)


PEERS: dict[str, Callable[[], Peer]] = {
    "orbax": Orbax,
    "t5x": T5X,
    "trainer": Trainer,
    "ours": Ours,
}
