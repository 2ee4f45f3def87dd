"""What is taken for a secret, and what is not."""

import json
import time

import pytest

from agent.fakes import EchoTool, call, toolbox
from codemill.agent.loop import Agent
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.secrets import MASK, mask_all, mask_secrets
from codemill.agent.session import Session
from codemill.agent.tool import Observation

BODY = "\n".join(["MIIEpAIBAAKCAQEA" + "x9/+" * 12] * 4)
SECRETS = [
    "sk-" + "aB3" * 12,
    "sk-ant-api03-" + "aB3_" * 12,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2_" * 12,
    "glpat-" + "a1B2" * 6,
    "AKIA" + "ABCD1234EFGH5678",
    "AIza" + "Sy0-_" * 7,
    "xoxb-" + "1234567890-" * 3,
    "hf_" + "aBcD" * 9,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n-----END RSA PRIVATE KEY-----",
    f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BODY}",
    f"-----BEGIN ENCRYPTED PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,AB12\n\n{BODY}\n",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "key = '{}'\n", "see ({}), please", "a\tb={} c"])
def test_a_secret_is_masked(secret, around):
    masked = mask_secrets(around.format(secret))
    is_cut = secret.startswith("-----") and "END" not in secret  # then what follows may be more of it
    assert is_cut or masked == around.format(MASK)
    assert MASK in masked
    assert secret.strip()[-12:] not in masked
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize("secret", SECRETS)
def test_json_stays_json(secret):
    """Arguments of calls are JSON in a string."""
    arguments = json.dumps({"content": f"a\n{secret}\nDB_PASSWORD=hunter22\nc", "path": "x"})
    masked = mask_all({"arguments": arguments})["arguments"]
    found = json.loads(masked)
    assert found["path"] == "x"
    assert found["content"].startswith(f"a\n{MASK}")
    assert "hunter22" not in masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("DB_PASSWORD=hunter22", f"DB_PASSWORD={MASK}"),
        ("export GITHUB_TOKEN='abcdef123'\n", f"export GITHUB_TOKEN='{MASK}'\n"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+ghi123", f"AWS_SECRET_ACCESS_KEY={MASK}"),
        ("postgres://me:s3cr3t99@db.example/x", f"postgres://me:{MASK}@db.example/x"),
        ("12: API_KEY=abcdef12", f"12: API_KEY={MASK}"),
    ],
)
def test_values_of_variables_and_addresses(text, masked):
    assert mask_secrets(text) == masked
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        'password = "hunter2"',
        "def connect(password=None, token=''):",
        "TOKEN=$(cat file)",
        "TOKEN=${GITHUB_TOKEN}",
        "API_KEY=os.environ['API_KEY']",
        "SECRET_KEY=get_secret('x')",
        "API_KEY=<your key>",
        "MAX_TOKENS = 4096",
        "postgres://postgres:postgres@localhost/db",
        "postgres://user:password@localhost/db",
        "https://example.org:8080/path@2x",
        "if '-----BEGIN PRIVATE KEY-----' in text:",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "sk-learn, task-sk-short, sk-toast, sk-folding-cube-container-of-mine",
        "commit 3f2c8a1b9d0e4f5a6b7c8d9e0f1a2b3c4d5e6f70",
        "ghp_short AKIA123",
    ],
)
def test_what_is_none(text):
    assert mask_secrets(text) == text


def test_long_texts_take_no_time():
    for text in (
        "A" * 300_000,
        "A_TOKEN" * 50_000,
        "://a:" * 60_000,
        "-----BEGIN PRIVATE KEY-----" * 10_000,
        "sk-" * 100_000,
    ):
        begin = time.perf_counter()
        mask_secrets(text)
        assert time.perf_counter() - begin < 2


def test_the_model_does_not_see_it_and_cannot_write_the_mask():
    key = "ghp_" + "a1B2" * 9
    shows = EchoTool(action=lambda text, context: Observation(f"token: {key}"))
    writes = EchoTool("write", "edit")
    replies = [call("echo", text="a"), call("write", text=f"token: {MASK}"), "Done."]
    agent = Agent(ScriptedModel(replies), toolbox(shows, writes), Session())
    agent.run("do it")
    results = [message["content"] for message in agent.session.messages if message["role"] == "tool"]
    assert results[0] == f"token: {MASK}"
    assert "stands for a secret" in results[1]
    assert writes.calls == []
