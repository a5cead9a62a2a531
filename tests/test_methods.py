"""Forms of inputs and targets, what is left out of them, and what an epoch draws."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import toy
from toy import heard

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import LABEL, RATIONALE
from dss_jax.data import joint
from dss_jax.data.joint import label_in, rationale_in
from dss_jax.data.store import SAMPLES, TEXT_COLUMNS, TOKEN_COLUMNS, JoinedSplit, TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.data.views import examples_of
from dss_jax.layouts import health
from dss_jax.layouts.batches import TrainBatches

DATA = config.Data(batch_size=8, layout="padded")
ALL = np.arange(37)


def method(form: str = "tasks", **fields: object) -> config.Method:
    return config.Method(name=form, rationale=form == "tasks", form=form, **fields)


def _row(flat: np.ndarray, lengths: np.ndarray, row: int) -> list[int]:
    ends = np.cumsum(lengths)
    return flat[ends[row] - lengths[row] : ends[row]].tolist()


class TestForms:
    @pytest.mark.parametrize("form", ["rationale_label", "label_rationale"])
    def test_one_target_holds_both(self, toy_store: TokenStore, form: str) -> None:
        split = toy_store.split("train")
        examples = examples_of(split, DATA, method(form))
        assert examples.roles == (LABEL,)
        flat, lengths = examples.targets(ALL), examples.lengths(ALL)[1][0]
        for row in ALL:
            label = split.tokens("label_targets")[row][:-1].tolist()
            rationale = split.tokens("rationale_targets")[row][:-1].tolist()
            if not rationale:
                expected = [*label, 1]
            elif form == "rationale_label":
                expected = [*rationale, *split.encode(joint.ANSWER), *label, 1]
            else:
                expected = [*label, *split.encode(joint.BECAUSE), *rationale, 1]
            assert _row(flat, lengths, row) == expected

    def test_pinto_reads_the_rationale(self, toy_store: TokenStore) -> None:
        split = toy_store.split("train")
        examples = examples_of(split, DATA, method("rationale_input"))
        flat, lengths = examples.inputs(ALL), examples.lengths(ALL)[0][0]
        for row in ALL:
            parts = (split.tokens(c)[row].tolist() for c in ("label_inputs", "rationale_targets"))
            assert _row(flat, lengths, row) == [token for part in parts for token in part]
        scored = joint.label_inputs(split, "rationale_input")
        assert scored[5].tolist() == _row(flat, lengths, 5), "when it is scored, too"

    @pytest.mark.parametrize(
        ("form", "text", "label", "rationale"),
        [
            ("rationale_label", "So 3 + 4. Answer: ( 3 + 4 )", "( 3 + 4 )", "So 3 + 4."),
            ("rationale_label", "Answer: no. Answer: yes", "yes", "Answer: no."),
            ("rationale_label", "( 3 + 4 )", "( 3 + 4 )", ""),
            (
                "label_rationale",
                "yes Rationale: it is. Rationale: so",
                "yes",
                "it is. Rationale: so",
            ),
            ("label_rationale", "yes", "yes", ""),
            ("label_rationale", "", "", ""),
        ],
    )
    def test_the_label_is_read_from_the_text(
        self, form: str, text: str, label: str, rationale: str
    ) -> None:
        assert (label_in(text, form), rationale_in(text, form)) == (label, rationale)

    def test_cut_targets_end_in_eos(self, toy_store: TokenStore) -> None:
        data = dataclasses.replace(DATA, target_length=6)
        examples = examples_of(toy_store.split("train"), data, method("rationale_label"))
        flat, lengths = examples.targets(ALL), examples.lengths(ALL)[1][0]
        assert lengths.max() == 6
        assert all(_row(flat, lengths, row)[-1] == 1 for row in ALL)

    @pytest.mark.parametrize("layout", ["flat", "packed"])
    @pytest.mark.parametrize("form", ["rationale_label", "rationale_input"])
    def test_each_layout_holds_them(self, toy_store: TokenStore, layout: str, form: str) -> None:
        found = []
        for name in (layout, "padded"):
            data = dataclasses.replace(DATA, layout=name)
            make = TrainBatches(
                toy_store.split("train"), config.Task(name="toy"), data, method(form)
            )
            blocks = make(2)
            assert {int(r) for b in blocks for r in np.unique(b.decoder_roles)} <= {0, LABEL}
            found.append(
                [
                    np.sort(np.concatenate([getattr(b, f)[getattr(b, f) > 0] for b in blocks]))
                    for f in ("encoder_input_tokens", "decoder_target_tokens")
                ]
            )
        for got, expected in zip(*found, strict=True):
            np.testing.assert_array_equal(got, expected)


class TestOnlyCorrect:
    RIGHT = np.arange(37) % 3 > 0

    def test_wrong_rationales_are_not_learned(self, toy_store: TokenStore) -> None:
        split = toy_store.split("train")
        _, before = examples_of(split, DATA, config.Method()).lengths(ALL)
        _, after = examples_of(split, DATA, config.Method(), self.RIGHT).lengths(ALL)
        np.testing.assert_array_equal(after[0], before[0], "gold labels stay")
        np.testing.assert_array_equal(after[1], np.where(self.RIGHT, before[1], 0))

    def test_rows_with_a_wrong_teacher_label_are_left_out(self, toy_store: TokenStore) -> None:
        unlabeled = config.Method(name="dss_unlabeled", label="teacher", only_correct=True)
        make = TrainBatches(
            toy_store.split("train"), config.Task(name="toy"), DATA, unlabeled, right=self.RIGHT
        )
        has = toy_store.split("train").tokens("teacher_label_targets").lengths() > 0
        np.testing.assert_array_equal(make.rows, np.flatnonzero(has & self.RIGHT))

    def test_no_rationale_left_is_an_error(self, toy_store: TokenStore) -> None:
        run, split = toy.make_run(), toy_store.split("train")
        with heard() as said:
            right = health.right_rows(run, split, str.__eq__)
        labels = zip(split.text("label")[:], split.text("teacher_label")[:], strict=True)
        np.testing.assert_array_equal(right, [gold == teacher for gold, teacher in labels])
        kept = right & (split.tokens("rationale_targets").lengths() > 0)
        assert said == [f"Method.only_correct: {kept.sum()} of 30 rationales are kept"]
        with pytest.raises(UsageError, match="there is no such row"):
            health.right_rows(run, split, lambda gold, teacher: False)

    def test_no_row_left_is_an_error(self, toy_store: TokenStore) -> None:
        unlabeled = config.Method(name="dss_unlabeled", label="teacher", only_correct=True)
        with pytest.raises(UsageError, match="has a teacher label that is right"):
            TrainBatches(
                toy_store.split("train"),
                config.Task(name="toy"),
                DATA,
                unlabeled,
                right=np.zeros(37, bool),
            )


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The toy store with 0 to 3 rationales a row: row r has r % 4, all of which begin with 300 + r;
    their second token is their number.
    """
    folder = tmp_path_factory.mktemp("several")
    made = toy.make_store(folder / "toy", np.random.default_rng(0))
    split = made.split("train")
    builder = SplitBuilder((*TOKEN_COLUMNS, SAMPLES), TEXT_COLUMNS)
    for row in range(len(split)):
        tokens = {c: split.tokens(c)[row].tolist() for c in TOKEN_COLUMNS}
        rationales = [[300 + row, 10 + i, *[7] * i, 1] for i in range(row % 4)]
        tokens["rationale_targets"] = rationales[0] if rationales else []
        tokens[SAMPLES] = [t for r in rationales for t in r] if len(rationales) > 1 else []
        builder.append(tokens, {c: split.text(c)[row] for c in TEXT_COLUMNS})
    description = {"name": "toy", "kind": "task", "key": "several", "prefixes": "paper"}
    return write_store(folder / "store", {"train": builder}, toy.VOCABULARY, 0, description)


class TestDrawn:
    DRAWN = config.Method(rationales="drawn")

    def drawn(self, store: TokenStore, seed: int, epoch: int) -> dict[int, list[int]]:
        examples = examples_of(store.split("train"), DATA, self.DRAWN)
        items = examples.items(ALL, seed, epoch)
        _, lengths = examples.lengths(items)
        flat = examples.targets(items)[lengths[0].sum() :]
        return {int(row): _row(flat, lengths[1], i) for i, row in enumerate(items % 37)}

    def test_each_row_gets_one_of_its_own(self, several: TokenStore) -> None:
        seen: dict[int, set[int]] = {row: set() for row in range(37)}
        for epoch in range(60):
            for row, tokens in self.drawn(several, 0, epoch).items():
                if row % 4 == 0:
                    assert tokens == []
                    continue
                assert tokens[0] == 300 + row
                assert tokens[-1] == 1
                assert len(tokens) == 3 + tokens[1] - 10
                seen[row].add(tokens[1] - 10)
        assert all(found == set(range(row % 4)) for row, found in seen.items())

    def test_it_depends_on_seed_epoch_and_row_alone(self, several: TokenStore) -> None:
        first = self.drawn(several, 0, 3)
        assert self.drawn(several, 0, 3) == first
        assert self.drawn(several, 0, 4) != first
        assert self.drawn(several, 1, 3) != first
        examples = examples_of(several.split("train"), DATA, self.DRAWN)
        some = examples.items(np.array([30, 7]), 0, 3)
        np.testing.assert_array_equal(some, examples.items(ALL, 0, 3)[[30, 7]])

    @pytest.mark.parametrize("layout", ["padded", "flat", "packed"])
    def test_a_batch_holds_them(self, several: TokenStore, layout: str) -> None:
        data = dataclasses.replace(DATA, layout=layout)
        make = TrainBatches(several.split("train"), config.Task(name="toy"), data, self.DRAWN)
        for step in range(12):
            blocks = make(step)
            found = np.concatenate(
                [b.decoder_target_tokens[b.decoder_roles == RATIONALE] for b in blocks]
            )
            rows = make.rows_at(step)
            heads = sorted(int(t) - 300 for t in found if t >= 300)
            assert heads == sorted(int(r) for r in rows if r % 4)
            assert make.work_at(step).decoder_tokens == sum(
                int((b.decoder_roles > 0).sum()) for b in blocks
            )

    def test_a_store_with_one_rationale_a_row_is_an_error(self, toy_store: TokenStore) -> None:
        with pytest.raises(UsageError, match=r"train has at most one of each.*--samples"):
            examples_of(toy_store.split("train"), DATA, self.DRAWN)


class TestExtras:
    def joined(self, toy_store: TokenStore) -> JoinedSplit:
        return JoinedSplit(toy_store.split("train"), [toy_store.split("validation")])

    def test_extra_rows_have_the_teachers_label(self, toy_store: TokenStore) -> None:
        joined, extra = self.joined(toy_store), toy_store.split("validation")
        assert (len(joined), joined.own) == (37 + 9, 37)
        for row in range(9):
            got = joined.tokens("label_targets")[37 + row].tolist()
            assert got == extra.tokens("teacher_label_targets")[row].tolist()
            assert joined.text("label")[37 + row] == ""
            assert joined.text("id")[37 + row] == extra.text("id")[row]

    def test_the_fraction_is_of_the_tasks_own_rows(self, toy_store: TokenStore) -> None:
        task = config.Task(name="toy", train_count=5, extra_tasks="other")
        make = TrainBatches(self.joined(toy_store), task, DATA, config.Method())
        assert (make.rows < 37).sum() == 5
        labelled = toy_store.split("validation").tokens("teacher_label_targets").lengths() > 0
        np.testing.assert_array_equal(make.rows[5:] - 37, np.flatnonzero(labelled))
        assert make.left_out == 9 - labelled.sum()

    @pytest.mark.slow
    def test_svamp_with_asdiv_from_the_command_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        from dss_jax.cli.main import main
        from dss_jax.core.config import Data, Task, Vocabulary
        from dss_jax.data import prepare_child
        from dss_jax.data.prepare import ensure_store

        release = Path(__file__).parent / "fixtures" / "release"
        command = ["prepare", "--task", "svamp", "--extra_task", "asdiv"]
        places = {"data_dir": release, "vocabulary": toy.VOCABULARY, "store_dir": tmp_path}
        assert main([*command, *(f"--{flag}={place}" for flag, place in places.items())]) == 0
        assert re.findall(r"token store: .*/(\w+)-", capsys.readouterr().out) == ["svamp", "asdiv"]
        # Nothing is left to be made for those who train.
        monkeypatch.setattr(prepare_child, "run", None)
        task = Task(name="svamp", data_dir=str(release), extra_tasks="asdiv")
        store = ensure_store(
            task,
            Vocabulary(path=str(toy.VOCABULARY)),
            Data(store_dir=str(tmp_path)),
            need=("train",),
        )
        (extra,) = store.extras
        assert extra.manifest["name"] == "asdiv"
        assert store.key == f"{store.manifest['key']}+{extra.manifest['key']}"
        joined = JoinedSplit(store.split("train"), [extra.split("train")])
        taught = [t for t in joined.text("teacher_label")[joined.own :] if t]
        assert taught
        assert set(taught) <= {"(8 + 5)", "(12 * 4)", "(20 + 6)", "(27 / 3)"}


class TestChecks:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: config.Method(form="spans"), "Method.rationale is the second task"),
            (lambda: config.Method(form="span"), "Method.form 'span'.*Did you mean 'spans'"),
            (lambda: config.Loss(alpha_schedule="phased"), "Loss.alpha_phases goes with"),
            (lambda: config.Loss(alpha_phases=((1.0, 0.5),)), "Loss.alpha_phases goes with"),
            (
                lambda: config.Loss(alpha_schedule="phased", alpha_phases=((0.5, 1), (0.4, 0))),
                r"must add up to 1, not 0.9",
            ),
            (
                lambda: toy.make_run(
                    method=method("rationale_input"), loss=config.Loss(mutual_information=0.1)
                ),
                "has one task. Take dss",
            ),
            (
                lambda: toy.make_run(
                    method=method("rationale_label"), evaluate=config.Evaluate(decode="rank")
                ),
                "predicts label and rationale in one text",
            ),
            (
                lambda: config.Task(
                    mixture_or_task_name="a", mixture_or_task_module="b", extra_tasks="asdiv"
                ),
                "are task files beside a task file",
            ),
        ],
    )
    def test_what_cannot_be_is_said(self, make, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            make()
