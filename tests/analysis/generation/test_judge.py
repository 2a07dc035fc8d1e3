"""Texts are judged once each, the key is nowhere, and what is no verdict is none."""

import logging
import sqlite3
import traceback

import pytest

from actcache.analysis.generation.judge import (
    Judge,
    JudgedText,
    default_verdicts,
    judge_texts,
    load_template,
    verdict_of,
)
from actcache.encoders.connection import OPENAI, Endpoint
from actcache.errors import ActcacheError, FormatError
from tests.support.chat_server import ChatServer
from tests.support.recorder import Recorder

KEY = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"
TEXTS = [JudgedText(prompt="p", text=f"text {i}") for i in range(12)]


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01, raising=False)


def ask(server, texts=TEXTS, *, template="{prompt}: {text}", threads=3, retries=1, **options):
    service = Endpoint(endpoint=server.url, model="m", timeout=5.0, retries=retries)
    judge = Judge(service=service, template=template, threads=threads)
    return judge_texts(texts, judge, **options)


def test_each_question_is_paid_once_and_the_cost_is_told_first():
    watcher = Recorder()
    with ChatServer() as server:
        first = ask(server, [*TEXTS, TEXTS[0]], progress=watcher)
        again = ask(server, TEXTS[::-1])
        n_asked = len(server.requests)
    assert first.values == (*map(float, range(12)), 0.0)
    assert again.values == first.values[11::-1]
    assert (first.n_new, first.n_cached, first.tokens) == (12, 0, 48)
    assert (again.n_new, again.n_cached, again.tokens) == (0, 12, 0)
    assert n_asked == 12
    [cost] = watcher.costs
    assert "12 new texts for the judge m at" in str(cost)
    assert server.paths[0] == "/v1/chat/completions"


def test_another_prompt_text_template_model_or_behavior_is_another_question(tmp_path):
    with ChatServer() as server:
        base = JudgedText(prompt="p", text="3", behavior="tidy")
        ask(server, [base], template="{behavior} {prompt} {text}")
        for text in (
            JudgedText(prompt="q", text="3", behavior="tidy"),
            JudgedText(prompt="p", text="4", behavior="tidy"),
            JudgedText(prompt="p", text="3", behavior="calm"),
        ):
            assert ask(server, [text], template="{behavior} {prompt} {text}").n_new == 1
        assert ask(server, [base], template="{prompt} {text}").n_new == 1
        assert ask(server, [base], template="{behavior} {prompt} {text}").n_new == 0


def test_braces_of_a_text_are_no_fields():
    with ChatServer(always="say 1") as server:
        ask(server, [JudgedText(prompt="{text}", text="{prompt} {} {x}")])
        assert server.texts == ["{text}: {prompt} {} {x}"]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("7", 7.0),
        (" 7.5\n", 7.5),
        ("-2", -2.0),
        ("7/10", 7.0),
        ("Rating: 7 / 10.", 7.0),
        ("**Rating:** 8", 8.0),
        ("YES", 1.0),
        ("No.", 0.0),
        ("It is tidy.\nScore: 3", 3.0),
        ("", None),
        ("safe", None),
        ("There is no doubt", None),
        ("I cannot judge 2 of these", None),
        ("yes and no", None),
        ("3\nbecause it is", None),
    ],
)
def test_a_verdict_is_a_number_or_yes_or_no_on_the_last_line(answer, verdict):
    assert verdict_of(answer) == verdict


def test_answers_without_a_verdict_are_none_counted_and_not_paid_again():
    with ChatServer("say perhaps", "silence") as server:
        first = ask(server, threads=1)
        again = ask(server)
        assert len(server.requests) == 12
    assert first.values[:3] == (None, None, 2.0)
    assert (first.n_without, again.n_without) == (2, 2)
    assert again.values == first.values


@pytest.mark.parametrize("reply", ["429", "500", "503", "drop", "html", "no choice", "list"])
def test_a_passing_failure_is_retried(reply):
    with ChatServer("ok", reply) as server:
        assert ask(server).values == tuple(map(float, range(12)))
        assert len(server.requests) == 13


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        ("500", r"\(500\) fails: .*Try again later: verdicts received so far are cached"),
        ("quota", "Check your quota"),
        ("echo 401", "may chat with 'm'. Set OPENAI_API_KEY"),
        ("echo 404", "no chat completions.* without /chat/completions"),
        ("no choice", "no answer of the protocol .*3 times.* Use another model"),
    ],
)
def test_a_lasting_failure_is_one_line_and_keeps_what_was_received(reply, remedy):
    with ChatServer("ok", "ok", "ok", always=reply) as server:
        with pytest.raises(ActcacheError, match=remedy) as raised:
            ask(server, threads=1, retries=0)
        assert "\n" not in str(raised.value)
        server.always = "ok"
        verdicts = ask(server)
    assert (verdicts.n_cached, verdicts.n_new) == (3, 9)


def test_answers_on_their_way_when_another_fails_are_kept():
    with ChatServer("echo 401", delay=0.05) as server:
        with pytest.raises(ActcacheError, match="Set OPENAI_API_KEY"):
            ask(server, threads=4, retries=0)
        n_answered = len(server.requests) - 1
        assert ask(server).n_cached == n_answered


def test_a_refused_question_has_no_verdict_and_all_refused_is_an_error():
    with ChatServer("ok", "echo 400") as server:
        verdicts = ask(server, threads=1)
        assert (verdicts.values[1], verdicts.n_refused, verdicts.n_without) == (None, 1, 1)
        assert (verdicts.n_new, ask(server).n_new) == (11, 1)  # a refusal costs nothing
    with (
        ChatServer(always="echo 400") as server,
        pytest.raises(ActcacheError, match=r"every one of 12 texts\. Use another model"),
    ):
        ask(server)


@pytest.mark.parametrize("reply", ["echo 400", "echo 401", "echo 404", "echo 500", "echo half"])
def test_the_key_is_in_no_error_log_or_file(reply, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with ChatServer("ok", always=reply) as server:
        try:
            shown = repr(ask(server, threads=1))
        except ActcacheError as error:
            shown = "".join(traceback.format_exception(error)) + repr(error.__cause__)
    shown += str(capfd.readouterr())
    shown += "".join(record.getMessage() for record in caplog.records)
    assert not any(KEY[i : i + 8] in shown for i in range(len(KEY) - 8))
    assert KEY[:8].encode() not in default_verdicts().read_bytes()


def test_the_file_holds_no_text(tmp_path):
    with ChatServer(always="say 1") as server:
        ask(server, [JudgedText(prompt="a private prompt", text="a private text")])
    assert b"private" not in default_verdicts().read_bytes()


def test_openai_needs_a_key_and_what_is_cached_needs_none(monkeypatch):
    with ChatServer() as server:
        ask(server)
        monkeypatch.delenv("OPENAI_API_KEY")
        assert ask(server).n_new == 0
    judge = Judge(service=Endpoint(endpoint=OPENAI, model="m"))
    with pytest.raises(ActcacheError, match="Set it in the environment, or choose a --target"):
        judge_texts(TEXTS, judge)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE other (x)")
    with (
        ChatServer() as server,
        pytest.raises(FormatError, match=r"no.* cache of verdicts.* Choose another file"),
    ):
        ask(server, cache=path)


def test_a_template_without_the_text_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ActcacheError, match=r"Add \{text\}"):
        Judge(service=Endpoint(endpoint="x", model="m"), template="{prompt}")
    with pytest.raises(ActcacheError, match="Pass another file"):
        load_template(tmp_path / "none.txt")
