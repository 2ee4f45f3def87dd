"""The list of models over HTTP."""

import anthropic
import openai
import pytest

from codemill.engine.scripted import ScriptedEngine
from codemill.server.model_entry import ModelDefinition
from codemill.server.registry import Registry


@pytest.fixture
def client(serve, tmp_path):
    definition = ModelDefinition("org/model", aliases=("short",), adapters={"team/adapter": tmp_path})
    registry = Registry([definition], lambda asked: ScriptedEngine(lambda prompt: "Hello!"), is_lazy=True)
    client = serve(registry=registry)
    assert client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}).status_code == 200
    return client


def test_openai(client):
    sdk = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x")
    models = {model.id: model for model in sdk.models.list()}
    assert list(models) == ["org/model", "short", "team/adapter"]
    assert {model.owned_by for model in models.values()} == {"codemill"}
    assert models["team/adapter"].parent == "org/model"
    assert models["short"].root == "org/model"
    assert models["org/model"].max_model_len == 32768
    assert sdk.models.retrieve("org/model").id == "org/model"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("nothing")


def test_anthropic(client):
    sdk = anthropic.Anthropic(base_url=str(client.base_url), api_key="x")
    assert [model.id for model in sdk.models.list()] == ["org/model", "short", "team/adapter"]
    assert [model.id for model in sdk.models.list(limit=1)] == ["org/model", "short", "team/adapter"]  # page by page
    page = sdk.models.list(limit=2)
    assert (page.has_more, page.first_id, page.last_id) == (True, "org/model", "short")
    model = sdk.models.retrieve("org/model")
    assert (model.type, model.display_name) == ("model", "org/model")
    assert model.created_at.year > 2000
