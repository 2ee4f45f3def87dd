"""Text as tokens and back over HTTP."""

from codemill.chat import Tokenizer

TEXT = "def f(x):\n    return 'wörld 你好 <|im_start|>'\n"


def test_there_and_back(serve):
    client, tokenizer = serve(), Tokenizer.load()
    answer = client.post("/tokenize", json={"content": TEXT}).json()
    assert answer["tokens"] == tokenizer.encode(TEXT, allowed_special="all")
    assert answer == client.post("/tokenize", json={"prompt": TEXT}).json()
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 32768)
    back = client.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"content": TEXT, "prompt": TEXT}
    plain = client.post("/tokenize", json={"content": TEXT, "parse_special": False}).json()
    assert plain["tokens"] == tokenizer.encode(TEXT)


def test_pieces(serve):
    tokens = serve().post("/tokenize", json={"content": "a 你好", "with_pieces": True}).json()["tokens"]
    raw = b"".join(
        bytes(each["piece"]) if isinstance(each["piece"], list) else each["piece"].encode() for each in tokens
    )
    assert raw.decode() == "a 你好"


def test_a_conversation_is_what_chat_counts(serve):
    client = serve()
    messages = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    count = client.post("/tokenize", json={"messages": messages, "tools": tools}).json()["count"]
    usage = client.post("/v1/chat/completions", json={"messages": messages, "tools": tools}).json()["usage"]
    assert count == usage["prompt_tokens"]
    shorter = client.post("/tokenize", json={"messages": messages, "add_generation_prompt": False}).json()
    longer = client.post("/tokenize", json={"messages": messages}).json()
    assert longer["tokens"][: shorter["count"]] == shorter["tokens"]
    assert longer["count"] > shorter["count"]


def test_template(serve):
    prompt = serve().post("/apply-template", json={"messages": [{"role": "user", "content": "hi"}]}).json()["prompt"]
    assert prompt == Tokenizer.load().render([{"role": "user", "content": "hi"}])


def test_what_is_wrong(serve):
    client = serve()
    assert client.post("/tokenize", json={}).status_code == 400
    assert client.post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert client.post("/detokenize", json={"tokens": ["a"]}).status_code == 400
