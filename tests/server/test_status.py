"""Health, version, properties and metrics over HTTP."""

import threading
import time

from prometheus_client.parser import text_string_to_metric_families

import codemill
from codemill.engine.scripted import ScriptedEngine
from codemill.errors import CodemillError
from codemill.server.model_entry import ModelDefinition
from codemill.server.registry import Registry

MESSAGES = [{"role": "user", "content": "hi"}]


def metrics_of(client):
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(families, name, **labels):
    family = next(family for family in families.values() if any(each.name == name for each in family.samples))
    return sum(each.value for each in family.samples if each.name == name and labels.items() <= each.labels.items())


def test_health_and_version(serve):
    client = serve()
    assert (client.get("/health").status_code, client.get("/health").json()) == (200, {"status": "ok"})
    assert client.get("/version").json() == {"version": codemill.__version__}


def test_health_while_the_model_loads(serve):
    registry = Registry([ModelDefinition("m")], lambda asked: ScriptedEngine(lambda prompt: "x"))
    answer = serve(registry=registry).get("/health")
    assert answer.status_code == 503
    assert answer.json()["status"] == "not ready"


def test_health_says_that_a_model_is_loading(serve):
    may_end = threading.Event()

    def load(asked):
        may_end.wait(10)
        raise CodemillError("no such model")

    client = serve(registry=Registry([ModelDefinition("m")], load))
    asking = threading.Thread(target=lambda: client.post("/v1/completions", json={"prompt": "x"}))
    asking.start()
    for _ in range(200):
        if client.get("/health").json()["status"] == "loading model":
            break
        time.sleep(0.01)
    else:
        raise AssertionError("it never says so")
    may_end.set()
    asking.join()


def test_properties(serve):
    props = serve().get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 32768
    assert props["model_alias"] == "scripted"


def test_metrics(serve):
    client = serve(lambda prompt: "one two three", name='a "model"')
    for _ in range(3):
        client.post("/v1/chat/completions", json={"messages": MESSAGES, "n": 2})
    usage = client.post("/v1/completions", json={"prompt": "abc"}).json()["usage"]
    client.get("/nothing/at/all")
    client.get("/v1/models/some/name")
    families = metrics_of(client)
    model = {"model_name": 'a "model"'}
    assert value(families, "codemill_ttft_seconds_count", **model) >= 4
    assert value(families, "codemill_requests_finished_total", **model, finish_reason="stop") == 7
    assert value(families, "codemill_generated_tokens_total", **model) > usage["completion_tokens"]
    assert value(families, "codemill_http_requests_total", path="/v1/chat/completions", status="200") == 3
    assert value(families, "codemill_http_requests_total", path="other", status="404") == 1
    assert value(families, "codemill_http_requests_total", path="/v1/models/{name:path}", status="404") == 1
    assert value(families, "codemill_process_resident_memory_bytes") > 1 << 20
    assert value(families, "codemill_process_open_fds") > 3
    again = metrics_of(client)
    assert value(again, "codemill_http_requests_total", path="/metrics") == 1


def test_names_and_types_follow_the_rules(serve):
    """What `promtool check metrics` complains about."""
    client = serve()
    client.post("/v1/completions", json={"prompt": "abc"})
    for name, family in metrics_of(client).items():
        assert name.startswith("codemill_")
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
        if family.type == "histogram":
            assert name.endswith("_seconds")
            check_histogram(family)


def check_histogram(family):
    groups = {}
    for sample in family.samples:
        labels = tuple(sorted((key, text) for key, text in sample.labels.items() if key != "le"))
        groups.setdefault(labels, []).append(sample)
    for samples in groups.values():
        buckets = [each for each in samples if each.name.endswith("_bucket")]
        counts = [each.value for each in buckets]
        assert counts == sorted(counts)
        assert buckets[-1].labels["le"] == "+Inf"
        assert counts[-1] == next(each.value for each in samples if each.name.endswith("_count"))


def test_open_streams(serve):
    client = serve(lambda prompt: "a b c d " * 1000, token_seconds=0.02)
    with client.stream("POST", "/v1/completions", json={"prompt": "x", "max_tokens": -1, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        assert value(metrics_of(client), "codemill_http_streams_open") == 1
    for _ in range(100):
        if value(metrics_of(client), "codemill_http_streams_open") == 0:
            return
        time.sleep(0.02)
    raise AssertionError("the stream is still open")
