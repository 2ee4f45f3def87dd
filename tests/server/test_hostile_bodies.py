"""Bodies that a client could hold up all others with, or fill the memory."""

import json
import time

import pytest

MESSAGES = [{"role": "user", "content": "hi"}]
MANY = 100_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [1] * MANY}),
        ("/v1/chat/completions", {"messages": MESSAGES, "stop": [1] * MANY}),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [1] * MANY}),
        ("/v1/chat/completions", {"messages": MESSAGES, "guided_choice": [1] * MANY}),
        ("/v1/chat/completions", {"messages": MESSAGES, "logit_bias": {str(i): "x" for i in range(MANY)}}),
        ("/v1/completions", {"prompt": [*[1] * MANY, "x"]}),
        ("/v1/completions", {"prompt": [*[[1, 2]] * MANY, "x"]}),
        ("/v1/embeddings", {"input": [*[1] * MANY, "x"]}),
        ("/v1/messages", {"messages": [1] * MANY}),
        ("/v1/messages", {"messages": MESSAGES, "stop_sequences": [1] * MANY}),
        ("/detokenize", {"tokens": ["x"] * MANY}),
        ("/infill", {"input_extra": [1] * MANY}),
    ],
)
def test_a_list_of_wrong_values_is_refused_at_the_first(serve, path, body):
    client = serve()
    begin = time.perf_counter()
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert len(answer.text) < 1000
    assert time.perf_counter() - begin < 0.4  # an error for each takes ten times as long, and a kilobyte


def test_a_name_of_any_length_is_not_repeated(serve):
    answer = serve().post("/v1/chat/completions", json={"messages": MESSAGES, "logit_bias": {"k" * 100_000: 1}})
    assert (answer.status_code, len(answer.text) < 1000) == (400, True)
