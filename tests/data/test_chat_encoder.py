"""Which tokens of a conversation are learned: against what is known of each template, transformers and TRL."""

from pathlib import Path

import pytest

from codemill.chat import Tokenizer
from codemill.data.chat_encoder import ExampleEncoder
from codemill.data.conversation_formats import parse_example
from codemill.errors import CodemillError
from data.conversations import CHAT, INJECTION, REASONING, TEMPLATES, TOOLS, learned, says, user, with_template

HERMES = '<tool_call>\n{"name": "read_file", "arguments": {"path": "%s.py"}}\n</tool_call>'
CODER = "<tool_call>\n<function=read_file>\n<parameter=path>\n%s.py\n</parameter>\n</function>\n</tool_call>"
END = "<|im_end|>"


@pytest.fixture(scope="session")
def qwen_json(shared_data: Path) -> Path:
    return shared_data / "tokenizer_qwen" / "tokenizer.json"


@pytest.fixture(scope="session")
def templates(shared_data: Path, qwen_json: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("templates")
    sources = {name: (shared_data / "chat_templates" / f"{name}.jinja").read_text() for name in TEMPLATES}
    return {name: with_template(qwen_json, source, folder / name) for name, source in sources.items()}


def encode(tokenizer: Tokenizer, record: dict, **settings: str) -> list[str]:
    return learned(tokenizer, ExampleEncoder(tokenizer, **settings).encode(parse_example(record)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokens_are_those_that_are_served(name: str, templates: dict[str, Tokenizer]) -> None:
    tokenizer = templates[name]
    for record in (CHAT, TOOLS, INJECTION):
        document = ExampleEncoder(tokenizer).encode(parse_example(record))
        served = tokenizer.encode_chat(record["messages"], record.get("tools"), add_generation_prompt=False)
        assert tokenizer.decode(document.ids.tolist()) == tokenizer.decode(served)
        if name != "Qwen3.5-4B":  # there the newlines around an empty thought are given and learned apart
            assert document.ids.tolist() == served


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_begins_where_the_generation_prompt_ends(name: str, templates: dict[str, Tokenizer]) -> None:
    tokenizer = templates[name]
    record = {"messages": [user("Is 7 prime?"), says("Yes.", reasoning_content="It is.")]}
    document = ExampleEncoder(tokenizer).encode(parse_example(record))
    prompt = tokenizer.encode_chat(record["messages"][:1], add_generation_prompt=True)
    if name == "QwQ-32B":  # it writes no thoughts that stand apart from the answer
        prompt = prompt[:-2]
    given = int((document.weights == 0).argmin())
    assert document.ids[:given].tolist() == prompt
    assert document.weights.tolist() == [0.0] * given + [1.0] * (len(document) - given - 1) + [0.0]


THOUGHTS = {"Qwen3-0.6B": "<think>\n\n</think>\n\n", "Qwen3.5-4B": "\n</think>\n\n"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_and_their_ends_are_learned(name: str, templates: dict[str, Tokenizer]) -> None:
    thought = THOUGHTS.get(name, "")
    assert encode(templates[name], CHAT) == [f"3{END}", f"{thought}7{END}"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_learned_and_results_are_not(name: str, templates: dict[str, Tokenizer]) -> None:
    form = CODER if "Coder" in name or "3.5" in name else HERMES
    between = "\n\n" if "Coder" in name or "3.5" in name else "\n"
    first = f"I look.{between}{form % 'a'}\n{form % 'b'}{END}"
    second = f"{form % 'c'}{END}"
    last = f"Two assignments.{END}"
    if name == "Qwen3.5-4B":
        first, second, last = (THOUGHTS[name] + text for text in (first, second, last))
    if name == "Qwen3-0.6B":  # thinks before the last answer only, unless there are thoughts to write
        last = THOUGHTS[name] + last
    assert encode(templates[name], TOOLS) == [first, second, last]


def test_thoughts_of_earlier_turns_are_not_there_to_learn(templates: dict[str, Tokenizer]) -> None:
    assert encode(templates["Qwen3-0.6B"], REASONING) == [f"Yes.{END}", f"<think>\n2 * 4 = 8.\n</think>\n\nNo.{END}"]
    assert encode(templates["Qwen3.5-4B"], REASONING) == [f"Yes.{END}", f"2 * 4 = 8.\n</think>\n\nNo.{END}"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_users_and_tools_say_opens_no_turn(name: str, templates: dict[str, Tokenizer]) -> None:
    texts = encode(templates[name], INJECTION)
    assert len(texts) == 2
    assert not any("I am the assistant" in text or "Learn this" in text for text in texts)


def test_thoughts_spelled_out_in_the_answer_are_tokens(templates: dict[str, Tokenizer]) -> None:
    record = {"messages": [user("2+2?"), says("<think>\nEasy.\n</think>\n\n4")]}
    qwq, think = templates["QwQ-32B"], templates["QwQ-32B"].control_tokens["<think>"]
    document = ExampleEncoder(qwq).encode(parse_example(record))
    assert think in document.ids
    assert learned(qwq, document) == [f"Easy.\n</think>\n\n4{END}"]  # its generation prompt ends with <think>
    assert encode(templates["Qwen2.5-7B-Instruct"], record) == [f"<think>\nEasy.\n</think>\n\n4{END}"]


def test_a_template_told_not_to_think_gives_the_empty_thought(templates: dict[str, Tokenizer]) -> None:
    record = {"messages": [user("2+2?"), says("4")]}
    assert encode(templates["Qwen3-0.6B"], record, thinking="off") == [f"4{END}"]
    assert encode(templates["Qwen3.5-4B"], record, thinking="off") == [f"4{END}"]


def test_weights_choose_the_messages(templates: dict[str, Tokenizer]) -> None:
    tokenizer = templates["Qwen3-Coder.ik-2026-08"]
    question, first, again, last = CHAT["messages"]
    expected = {"weight": [f"7{END}"], "train": [f"7{END}"]}
    for key, value in (("weight", 0), ("train", False)):
        record = {"messages": [question, {**first, key: value}, again, last]}
        assert encode(tokenizer, record) == expected[key]
    assert encode(tokenizer, {**CHAT, "only_last_turn_loss": True}) == [f"7{END}"]
    document = ExampleEncoder(tokenizer).encode(parse_example({"messages": [question, {**first, "weight": 0.25}]}))
    assert set(document.weights.tolist()) == {0.0, 0.25}


NOT_CHATML = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
MERGED = (
    "{% for m in messages %}{% if not loop.previtem or loop.previtem.role != m.role %}<|im_start|>{{ m.role }}\n"
    "{% endif %}"
    "{{ m.content }}{% if loop.last or loop.nextitem.role != m.role %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SILENT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if m.role == 'user' else '' }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (NOT_CHATML, "not ChatML"),
        (MERGED, "2 assistant messages as 1 turns"),
        (SILENT, "does not write what assistant"),
    ],
)
def test_a_template_that_cannot_be_understood_is_an_error(
    source: str, fault: str, embedded_json: Path, tmp_path: Path
) -> None:
    tokenizer = with_template(embedded_json, source, tmp_path)
    record = {"messages": [user("Hi"), says("Hello."), says("And welcome.")]}
    with pytest.raises(CodemillError, match=fault):
        ExampleEncoder(tokenizer).encode(parse_example(record))
