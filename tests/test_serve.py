"""The routes of `dss serve`, asked in this process: answers, refusals, limits, probes."""

import argparse
import dataclasses
import ipaddress
import json
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from toy import heard

pytest.importorskip("fastapi", reason='needs pip install -e ".[serve]"')

from serving import CARD, EXAMPLES, client_of, make_student

from dss_jax.cli import serve as serve_command
from dss_jax.cli.main import main
from dss_jax.serve import completions
from dss_jax.serve.forms import CompletionForm
from dss_jax.serve.limits import ServeLimits
from dss_jax.serve.server import bind, run
from dss_jax.serve.service import Served, Service
from dss_jax.student.student import GeneratedIds, Prediction

TEXTS = [one["input"] for one in EXAMPLES]
LABELS = [one["allowed_labels"] for one in EXAMPLES]


@pytest.fixture(scope="module")
def student() -> Any:
    return make_student()[0]


@pytest.fixture(scope="module")
def client(student: Any) -> Iterator[Any]:
    limits = {"max_inputs": 8, "max_characters": 200, "max_labels": 4, "max_body": 4000}
    with client_of(student, **limits) as opened:
        yield opened


def shown(one: Prediction) -> dict[str, Any]:
    """As the server has it."""
    fields = dataclasses.asdict(one)
    del fields["input"]
    return fields


def refused(answer: Any, status: int, says: str, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}


class TestPredict:
    @pytest.mark.parametrize("explain", [False, True])
    def test_many_are_answered_as_predict_answers(self, client, student, explain) -> None:
        body = {"input": TEXTS, "explain": explain, "labels": LABELS}
        found = client.post("/v1/predict", json=body).json()
        wanted = student.predict(TEXTS, explain=explain, labels=LABELS)
        assert found == {"model": "words", "predictions": [*map(shown, wanted)]}

    def test_one_is_a_list_of_one(self, client, student) -> None:
        found = client.post("/v1/predict", json={"input": TEXTS[0]}).json()["predictions"]
        (wanted,) = student.predict(TEXTS[0])
        assert found == [shown(wanted)]
        assert found[0]["probability"] is None

    def test_the_same_labels_for_all(self, client, student) -> None:
        body = {"input": TEXTS[:2], "labels": LABELS[0]}
        found = client.post("/v1/predict", json=body).json()["predictions"]
        assert found == [*map(shown, student.predict(TEXTS[:2], labels=LABELS[0]))]

    def test_the_labels_of_the_task_are_the_default(self) -> None:
        card = dataclasses.replace(CARD, labels=("yes", "no"), row_labels=False)
        with client_of(make_student(card)[0]) as client:
            found = client.post("/v1/predict", json={"input": "?"}).json()["predictions"][0]
            assert set(found["probabilities"]) == {"yes", "no"}
            own = client.post("/v1/predict", json={"input": "?", "labels": ["maybe"]}).json()
            assert own["predictions"][0]["label"] == "maybe"

    def test_labels_of_too_many_tokens_are_refused(self) -> None:
        card = dataclasses.replace(CARD, labels=("yes or no", "no or yes"), row_labels=False)
        student, engine = make_student(card)
        many, own = [["yes"], ["no", "maybe or not at all"]], card.labels
        count = sum(map(len, student.label_ids(many[1])))
        with client_of(student, max_tokens=count - 1) as client:
            body = {"input": ["a", "b"], "labels": many}
            client.post("/v1/predict", json={"input": "a"})
            warm = len(engine.calls)
            answer = client.post("/v1/predict", json=body)
            refused(answer, 400, f"{count} tokens together; {count - 1} are allowed", "labels")
            assert len(engine.calls) == warm, "nothing was asked"
            found = client.post("/v1/predict", json={"input": "a"}).json()["predictions"][0]
            assert sum(map(len, student.label_ids(own))) >= count
            assert [*found["probabilities"]] == [*own], "the student's own are not looked at"
        with client_of(student, max_tokens=count) as client:
            assert client.post("/v1/predict", json=body).status_code == 200

    def test_each_text_is_encoded_once(self, monkeypatch) -> None:
        card = dataclasses.replace(CARD, labels=("yes", "no"), row_labels=False)
        student, _ = make_student(card)
        with client_of(student) as client:
            client.post("/v1/predict", json={"input": "warm"})
            encoded, plain = Counter[str](), student._vocabulary.encode_all
            monkeypatch.setattr(
                student._vocabulary,
                "encode_all",
                lambda texts: encoded.update(texts) or plain(texts),
            )
            for _ in range(2):  # The task's labels are known.
                client.post("/v1/predict", json={"input": "a"})
            labels = [["maybe", "never"], ["maybe", "perhaps"]]
            client.post("/v1/predict", json={"input": ["b", "c"], "labels": labels})
            client.post("/v1/completions", json={"model": "words", "prompt": ["d", "e"]})
        texts = [f"{CARD.label_prefix}{text}" for text in ("a", "a", "b", "c")]
        assert encoded == Counter([*texts, "maybe", "never", "perhaps", "d", "e"])

    @pytest.mark.parametrize("row_labels", [False, True])
    def test_a_student_with_both_in_one_text_is_asked_for_no_labels(self, row_labels) -> None:
        labels = () if row_labels else ("yes", "no")
        card = dataclasses.replace(
            CARD,
            form="rationale_label",
            rationale_prefix=None,
            labels=labels,
            row_labels=row_labels,
        )
        student, _ = make_student(card)
        with client_of(student, warm_batches=True) as client:
            shown_card = client.get("/v1/model").json()
            assert (shown_card["labels"], shown_card["row_labels"]) == ([], False)
            # The page sends an example's labels with it.
            assert not any(one["allowed_labels"] for one in shown_card["examples"])
            found = client.post("/v1/predict", json={"input": TEXTS, "explain": True}).json()
            assert found["predictions"] == [*map(shown, student.predict(TEXTS, explain=True))]
            answer = client.post("/v1/predict", json={"input": "a", "labels": ["yes", "no"]})
            refused(answer, 400, "its labels cannot be ranked. Leave them out")

    def test_a_student_that_cannot_explain_says_so(self) -> None:
        card = dataclasses.replace(CARD, rationale_prefix=None)
        with client_of(make_student(card)[0]) as client:
            answer = client.post("/v1/predict", json={"input": "?", "explain": True})
            refused(answer, 400, "was not trained to explain", "explain")

    @pytest.mark.parametrize(
        ("body", "says", "param"),
        [
            ({}, "input is missing", "input"),
            ({"input": 3}, "a text or a list of texts", "input"),
            ({"input": ["a", None]}, "a text or a list of texts", "input"),
            ({"input": []}, "1 to 8 texts, not 0", "input"),
            ({"input": ["a"] * 9}, "1 to 8 texts, not 9", "input"),
            ({"input": "a" * 201}, "201 characters", "input"),
            ({"input": "a", "explain": "yes"}, "true or false", "explain"),
            ({"input": "a", "lables": []}, "unknown field 'lables'", "lables"),
            ({"input": "a", "labels": "yes"}, "a list of texts", "labels"),
            ({"input": "a", "labels": []}, "1 to 4 texts", "labels"),
            ({"input": "a", "labels": [""]}, "none of them empty", "labels"),
            ({"input": "a", "labels": [*"abcde"]}, "1 to 4 texts", "labels"),
            ({"input": "a", "labels": ["a" * 201]}, "200 characters together", "labels"),
            ({"input": ["a", "b"], "labels": [["x"]]}, "not 1 lists", "labels"),
            ({"input": ["a", "b"], "labels": [["x"], []]}, "1 to 4 texts", "labels"),
            ([1], "a JSON object", None),
            (None, "a JSON object", None),
            ({"input": ["a", "\ud800"]}, "half a character", "input"),
            ({"input": "a", "labels": ["\ud800"]}, "half a character", "labels"),
            ({"input": "a", "\ud800": 1}, "a JSON object", None),
        ],
    )
    def test_a_mistake_is_named_with_the_field(self, client, body, says, param) -> None:
        # As ASCII: the client's own JSON has no half characters.
        content, headers = json.dumps(body), {"Content-Type": "application/json"}
        answer = client.post("/v1/predict", content=content, headers=headers)
        refused(answer, 400, says, param)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"\xff\xfe{}",
            b"[" * 3000,
            b'{"input": "\\ud800"}',
            b'{"input": NaN}',
            b'{"input": ' + b"9" * 3000 + b"}",
            b'{"input": "a", "explain": 1e999}',
        ],
    )
    def test_what_is_no_body_is_refused(self, client, body: bytes) -> None:
        answer = client.post(
            "/v1/predict", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]

    def test_half_a_pair_of_letters_harms_no_other(self, client) -> None:
        assert client.post("/v1/predict", json={"input": "\U0001f600 </s> <b>"}).status_code == 200


class TestCompletions:
    BODY = {"model": "words", "prompt": TEXTS[:2], "max_tokens": 5, "temperature": 0}

    def test_texts_and_usage(self, client, student) -> None:
        found = client.post("/v1/completions", json=self.BODY).json()
        wanted = student.complete(TEXTS[:2], 5)
        assert [c["text"] for c in found["choices"]] == [c.text for c in wanted]
        assert [c["finish_reason"] for c in found["choices"]] == ["length", "length"]
        assert [c["index"] for c in found["choices"]] == [0, 1]
        asked = sum(c.prompt_tokens for c in wanted)
        usage = {"prompt_tokens": asked, "completion_tokens": 10, "total_tokens": asked + 10}
        assert found["usage"] == usage
        assert found["object"] == "text_completion"

    def test_a_text_ends_before_a_stop(self, client, student) -> None:
        (whole,) = student.complete(TEXTS[:1], 24)
        stop = whole.text[4:6]
        body = self.BODY | {"prompt": TEXTS[0], "max_tokens": None, "stop": ["?!", stop]}
        (choice,) = client.post("/v1/completions", json=body).json()["choices"]
        assert choice["text"] == whole.text[: whole.text.index(stop)]
        assert choice["finish_reason"] == "stop"

    @pytest.mark.parametrize(
        ("form", "longest"), [("tasks", 24), ("rationale_label", 40), ("label_rationale", 40)]
    )
    def test_a_text_is_as_long_as_those_of_the_training(self, form, longest) -> None:
        card = dataclasses.replace(CARD, form=form)
        asked = CompletionForm(model="words", prompt="a")
        assert completions.longest_of(asked, card, ServeLimits()) == longest
        assert completions.longest_of(asked, card, ServeLimits(max_tokens=20)) == 20

    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("echo", True, "prompt is no beginning"),
            ("logprobs", 1, "ask /v1/predict"),
            ("logprobs", 0, "ask /v1/predict"),
            ("n", 2, "n must be 1"),
            ("best_of", 3, "best_of must be 1"),
            ("temperature", 0.7, "temperature must be 0"),
            ("stream", True, "not streamed"),
            ("suffix", "x", "suffix"),
            ("logit_bias", {"5": 1}, "logit_bias"),
            ("max_tokens", 0, "from 1 to 1024"),
            ("max_tokens", 5000, "from 1 to 1024"),
            ("max_tokens", "5", "max_tokens: "),
            ("stop", [""], "none of them empty"),
            ("prompt", [[5, 6]], "tokenized_requests=False"),
            ("prompt", [5, 6], "tokenized_requests=False"),
            ("max_token", 5, "unknown field"),
        ],
    )
    def test_what_a_student_cannot_do_is_refused(self, client, field, value, says) -> None:
        refused(client.post("/v1/completions", json=self.BODY | {field: value}), 400, says, field)

    def test_a_prompt_that_is_too_long_is_refused_and_not_cut(self, client) -> None:
        body = self.BODY | {"prompt": "1 + " * 50}
        assert client.post("/v1/completions", json=body).status_code == 200
        body["prompt"] = "ab" * 100
        answer = client.post("/v1/completions", json=body)
        refused(answer, 400, "and the student reads 128", "prompt")
        assert answer.json()["error"]["code"] == "context_length_exceeded"

    def test_another_model_is_not_found(self, client) -> None:
        answer = client.post("/v1/completions", json=self.BODY | {"model": "gpt"})
        refused(answer, 404, "this server has 'words'", "model")
        assert client.get("/v1/models/words").json()["id"] == "words"
        refused(client.get("/v1/models/a/b"), 404, "this server has 'words'", "model")
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["words"]

    def test_chat_is_told_where_to_go(self, client) -> None:
        refused(client.post("/v1/chat/completions", json={}), 404, "--form completion")


class TestDoor:
    def test_the_token_is_in_no_answer_and_no_log(self, student, caplog, capfd) -> None:
        caplog.set_level("DEBUG")
        shown = ""
        with client_of(student, token="secret-word") as client:
            for token in ("secret-word", "secret-word2"):
                headers = {"Authorization": f"Bearer {token}"}
                for path in ("/", "/metrics", "/v1/model", "/docs", "/openapi.json", "/none"):
                    answer = client.get(path, headers=headers)
                    shown += answer.text + str(answer.headers)
                shown += client.post("/v1/predict", json={"input": 1}, headers=headers).text
        assert "secret-word" not in shown + caplog.text + "".join(capfd.readouterr())

    def test_the_token_opens_v1_and_metrics_and_nothing_else_wants_it(self, student) -> None:
        with client_of(student, token="secret-word") as client:
            for path in ("/v1/model", "/v1/models", "/metrics"):
                answer = client.get(path)
                refused(answer, 401, "Authorization: Bearer")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                for wrong in ("Bearer x", "Bearer secret-word2", "Basic secret-word", "ünï", ""):
                    headers = {"Authorization": wrong.encode()}
                    assert client.get(path, headers=headers).status_code == 401
                right = {"Authorization": "Bearer secret-word"}
                assert client.get(path, headers=right).status_code == 200
            # Before its body is read.
            answer = client.post("/v1/predict", content=b"x" * 5_000_000)
            assert answer.status_code == 401
            schemes = client.get("/openapi.json").json()["components"]["securitySchemes"]
            assert schemes["HTTPBearer"]["scheme"] == "bearer"
            for path in ("/", "/page.js", "/healthz", "/readyz", "/docs", "/openapi.json"):
                assert client.get(path).status_code == 200

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost:8000", 200),
            ("LOCALHOST", 200),
            ("127.0.0.1:1", 200),
            ("[::1]:8000", 200),
            ("evil.example", 403),
            ("localhost.evil.example:8000", 403),
            ("[::1", 403),
            ("", 403),
        ],
    )
    def test_a_name_that_is_not_ours_is_refused(self, student, host: str, status: int) -> None:
        with client_of(student, hosts=("localhost", "127.0.0.1", "::1")) as client:
            answer = client.get("/v1/model", headers={"Host": host})
            assert answer.status_code == status
            if status == 403:
                refused(answer, 403, "--allowed_hosts")
            # Kubernetes asks by the address of the pod.
            assert client.get("/healthz", headers={"Host": host}).status_code == 200

    def test_another_site_can_neither_ask_nor_read(self, client) -> None:
        body = json.dumps({"input": "a"})
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {"Content-Type": kind, "Origin": "https://evil.example"}
            refused(client.post("/v1/predict", content=body, headers=headers), 415, kind)
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        answers = [client.options("/v1/predict", headers=asked), client.get("/v1/model")]
        assert answers[0].status_code == 405
        for answer in answers:
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]

    def test_a_large_body_is_refused_whether_or_not_it_tells_its_size(self, client) -> None:
        headers = {"Content-Type": "application/json"}
        whole = client.post("/v1/predict", content=b"x" * 4001, headers=headers)
        parts = client.post("/v1/predict", content=iter([b"x" * 3000] * 2), headers=headers)
        for answer in (whole, parts):
            refused(answer, 413, "4,000 bytes")

    def test_other_paths_and_methods(self, client) -> None:
        refused(client.get("/v1/nothing"), 404, "there is no GET /v1/nothing")
        refused(client.get("/v1/predict"), 405, "there is no GET /v1/predict")
        refused(client.put("/v1/predict", json={}), 405, "there is no PUT /v1/predict")


class TestOperation:
    def test_the_card_tells_what_the_page_needs(self, client) -> None:
        found = client.get("/v1/model").json()
        assert found["id"] == "words"
        assert found["engine"] == "digest"
        assert found["explains"] is True
        assert found["examples"] == [*EXAMPLES]
        assert found["limits"]["max_inputs"] == 8

    def test_metrics_count_requests_rows_and_batches(self, student) -> None:
        with client_of(student) as client:
            body = {"input": TEXTS[:3], "explain": True}
            assert client.post("/v1/predict", json=body).status_code == 200
            client.get("/nothing/at/all")
            text = client.get("/metrics").text
        for line in (
            'dss_requests_total{route="/v1/predict",status="200"} 1.0',
            'dss_requests_total{route="other",status="404"} 1.0',
            'dss_rows_total{kind="explain"} 3.0',
            'dss_batch_rows_bucket{le="4.0"} 1.0',
            "dss_waiting_rows 0.0",
            "dss_ready 1.0",
        ):
            assert line in text
        assert "process_resident_memory_bytes" in text

    def test_a_failure_that_nobody_foresaw_is_no_client_that_has_gone(self) -> None:
        student, _ = make_student()
        with client_of(student) as client:
            del student.engine
            with pytest.raises(AttributeError):
                client.get("/v1/model")
            text = client.get("/metrics").text
        assert 'dss_requests_total{route="/v1/model",status="500"} 1.0' in text
        assert 'status="499"' not in text

    def test_it_is_ready_when_the_student_is_warm_and_not_while_it_stops(self) -> None:
        student, engine = make_student()
        engine.hold.clear()
        with client_of(student) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["status"]) == (503, "warming up")
            engine.hold.set()
            deadline = time.monotonic() + 10
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
            client.service.stopping = True
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["status"]) == (503, "stopping")
            assert answer.headers["Connection"] == "close"

    def test_batches_of_every_size_are_asked_for_before_it_is_ready(self) -> None:
        student, engine = make_student()
        with client_of(student, warm_batches=True, batch_size=32) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.001)
            assert {1, 2, 4, 8, 16, 32} <= set(engine.calls)
            # Its rows have labels of their own.
            assert {1, 2, 4, 8, 16, 32} <= set(engine.ranked)

    def test_a_thread_that_has_died_is_told(self) -> None:
        student, engine = make_student()

        def fail(*_: object) -> None:
            raise MemoryError

        engine.generate = fail  # type: ignore[method-assign]
        with client_of(student) as client:
            client.service.batcher._thread.join(10)
            assert client.get("/healthz").status_code == 503
            answer = client.post("/v1/predict", json={"input": "a"})
            refused(answer, 503, "stopping")

    def test_a_student_that_cannot_be_warmed_up_ends_the_server(self) -> None:
        student, engine = make_student()
        engine.generate = lambda *_: 1 / 0  # type: ignore[method-assign]
        served = Served(student, "words", "", ("127.0.0.1",), ServeLimits())
        with bind("127.0.0.1", 0) as listening, pytest.raises(ZeroDivisionError):
            run(Service(served), listening)

    @pytest.mark.parametrize(
        "failing", [lambda *_: 1 / 0, lambda ids, _: [GeneratedIds([5], math.nan, True)] * len(ids)]
    )
    def test_a_failure_is_our_own_and_in_the_log(self, failing: Any) -> None:
        student, engine = make_student()
        with client_of(student) as client:
            while not client.service.ready:
                time.sleep(0.001)
            engine.generate = failing  # type: ignore[method-assign]
            with heard() as said:
                answer = client.post("/v1/predict", json={"input": "a text of mine"})
            refused(answer, 500, "the server's log says why")
            assert any("has failed" in line for line in said)
            assert "a text of mine" not in "".join(said)
            # And it goes on.
            assert client.post("/v1/predict", json={"input": "a", "labels": ["b"]}).is_success

    def test_a_full_queue_is_429(self) -> None:
        student, engine = make_student()
        with client_of(student, max_waiting=4, max_inputs=8) as client:
            while not client.service.ready:
                time.sleep(0.001)
            refused(client.post("/v1/predict", json={"input": ["a"] * 5}), 413, "at most 4 rows")
            engine.hold.clear()
            bodies = [{"input": "a"}, {"input": ["b"] * 4}]
            threads = []
            for n, body in enumerate(bodies):
                arguments = {"url": "/v1/predict", "json": body}
                threads.append(threading.Thread(target=client.post, kwargs=arguments))
                threads[-1].start()
                deadline = time.monotonic() + 10
                while client.service.taken <= n or client.service.batcher.waiting != 4 * n:
                    assert time.monotonic() < deadline
            answer = client.post("/v1/predict", json={"input": "c"})
            refused(answer, 429, "try again in")
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert answer.json()["error"]["type"] == "rate_limit_error"
            engine.hold.set()
            for thread in threads:
                thread.join(10)
            assert client.post("/v1/predict", json={"input": "c"}).status_code == 200

    def test_one_thread_asks_the_student(self) -> None:
        student, engine = make_student(seconds=0.01)
        with client_of(student) as client:

            def ask() -> None:
                assert client.post("/v1/predict", json={"input": TEXTS, "explain": True}).is_success

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert len(engine.threads) == 1
        assert max(engine.calls) > len(TEXTS), "what waited was asked together"

    def test_the_openapi_page_needs_nothing_from_outside(self, client) -> None:
        page = client.get("/docs")
        assert "http" not in page.text.replace("layout", "")
        scripts = page.headers["Content-Security-Policy"].partition("style-src")[0]
        assert "'sha256-" in scripts
        assert "'unsafe-inline'" not in scripts
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/v1/predict", "/v1/completions", "/readyz"} <= set(paths)
        assert client.get("/docs/files/swagger-ui-bundle.js").status_code == 200
        assert client.get("/docs/files/../core.py").status_code == 404


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--student", "nowhere", "--port", "0"], "there is no folder nowhere"),
            (["--student", "nowhere", "--port", "99999"], "--port must be"),
            (["--student", "nowhere", "--port", "0", "--max_body", "0"], "--max_body must be"),
            (["--student", "nowhere", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        ],
    )
    def test_a_mistake_is_named(self, arguments, says, capsys) -> None:
        assert main(["serve", *arguments]) == 2
        assert says in capsys.readouterr().err

    def test_it_listens_on_this_machine_alone_unless_told(self) -> None:
        parser = argparse.ArgumentParser()
        serve_command.add_flags(parser)
        host = parser.parse_args(["--student", "x"]).host
        assert ipaddress.ip_address(host).is_loopback

    def test_a_port_that_is_taken(self, capsys) -> None:
        with bind("127.0.0.1", 0) as taken:
            taken.listen()
            port = str(taken.getsockname()[1])
            assert main(["serve", "--student", "nowhere", "--port", port]) == 2
        assert f"port {port}" in capsys.readouterr().err

    def test_a_token_with_a_line_break(self, monkeypatch, capsys) -> None:
        monkeypatch.setenv("DSS_SERVE_TOKEN", "two\nlines")
        assert main(["serve", "--student", "nowhere"]) == 2
        said = capsys.readouterr().err
        assert "DSS_SERVE_TOKEN must be one word" in said
        assert "two" not in said

    def test_without_its_libraries_it_says_how_to_get_them(self, monkeypatch, capsys) -> None:
        monkeypatch.delitem(sys.modules, "dss_jax.serve.server")
        monkeypatch.delattr("dss_jax.serve.server")
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        assert main(["serve", "--student", "nowhere"]) == 2
        assert 'needs uvicorn, which is not installed: pip install "dss-jax[serve]"' in (
            capsys.readouterr().err
        )

    def test_neither_jax_nor_tensorflow_is_loaded_for_a_server(self) -> None:
        code = "import sys, dss_jax.cli.serve as c; print('fastapi' in sys.modules)\n"
        code += "import dss_jax.serve.server; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        early, loaded = done.stdout.splitlines()
        assert early == "False", "help and refusals are quick"
        assert "fastapi" in loaded.split()
        assert not {"jax", "tensorflow", "torch"} & set(loaded.split())
