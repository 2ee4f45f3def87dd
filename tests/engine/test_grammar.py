"""Grammars hold a random model to them: what it writes is judged by jsonschema and by Python's `re`."""

import json
import re
import sys
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from codemill.chat import Tokenizer
from codemill.engine.grammar import GrammarCompiler, GrammarState
from codemill.engine.structured_output import StructuredOutput
from codemill.engine.token_mask import allowed_tokens
from codemill.errors import CodemillError, UsageError
from engine.json_schemas import INT, POINT, SCHEMAS, client_schemas, closed
from engine.random_text import RandomModel

VOCAB_SIZE = 320
QWEN_ROWS = 151_936


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB_SIZE)


@pytest.fixture(scope="module")
def qwen(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizer_qwen")


@pytest.fixture(scope="module")
def qwen_compiler(qwen: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(qwen, QWEN_ROWS)


def check_json(compiler: GrammarCompiler, tokenizer: Tokenizer, vocab_size: int, schema: Any, seeds: range) -> int:
    """Texts of a random model under a schema; returns how many came to an end, all of which are valid."""
    grammar = compiler.compile(StructuredOutput(json_schema=schema))
    oracle = json.loads(schema) if isinstance(schema, str) else schema
    ended = 0
    for seed in seeds:
        ids = RandomModel(tokenizer, vocab_size, seed).write(grammar.start())
        if ids is not None:
            jsonschema.validate(json.loads(tokenizer.decode(ids)), oracle)
            ended += 1
    return ended


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_outputs_validate(compiler: GrammarCompiler, tokenizer: Tokenizer, schema: Any) -> None:
    assert check_json(compiler, tokenizer, VOCAB_SIZE, schema, range(4)) >= 3


def test_there_are_a_hundred_schemas() -> None:
    assert len(SCHEMAS) >= 100


def test_outputs_validate_for_every_schema_of_the_clients(
    compiler: GrammarCompiler, tokenizer: Tokenizer, shared_data: Path
) -> None:
    schemas = client_schemas(shared_data)
    assert len(schemas) > 25
    assert sum(check_json(compiler, tokenizer, VOCAB_SIZE, schema, range(3)) for schema in schemas) > 2.8 * len(schemas)


def test_outputs_validate_with_qwens_vocabulary(
    qwen_compiler: GrammarCompiler, qwen: Tokenizer, shared_data: Path
) -> None:
    schemas = [*SCHEMAS[::12], *client_schemas(shared_data)[::8]]
    assert sum(check_json(qwen_compiler, qwen, QWEN_ROWS, schema, range(1)) for schema in schemas) > 0.9 * len(schemas)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"b":[1,2]}',
        '{"a": 1, "b": [1, 2]}',
        '{ "a" : 1 , "b" : [ 1 , 2 ] }',
        '{\n    "a": 1,\n    "b": [\n        1,\n        2\n    ]\n}',
        '{\r\n\t"a": 1,\r\n\t"b": [1, 2]\r\n}',
    ],
)
def test_json_may_be_laid_out_as_usual(compiler: GrammarCompiler, tokenizer: Tokenizer, text: str) -> None:
    state = compiler.compile(StructuredOutput(json_schema=closed(a=INT, b={"type": "array"}))).start()
    assert _follow(state, tokenizer, text) == text
    assert state.is_finished


@pytest.mark.parametrize("blank", ["\n", " ", "\t", "\r\n"])
def test_blanks_in_json_come_to_an_end(compiler: GrammarCompiler, tokenizer: Tokenizer, blank: str) -> None:
    state = compiler.compile(StructuredOutput(json_object=True)).start()
    assert len(_follow(state, tokenizer, "{" + blank * 100)) < 40


def _follow(state: GrammarState, tokenizer: Tokenizer, text: str) -> str:
    """Write `text` in single bytes as far as it goes, or in the tokens that are forced; returns how far it went."""
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    done = b""
    while not state.is_finished and len(done) < len(text.encode()):
        token_id = (state.forced_tokens() or [single[text.encode()[len(done) :][:1]]])[0]
        if not text.encode().startswith(done + tokenizer.token_bytes(token_id)) or state.num_valid([token_id]) == 0:
            break
        state.accept(token_id)
        done += tokenizer.token_bytes(token_id)
    return done.decode()


REGEXES = [
    "[a-z]+",
    r"\d{3}-\d{2}",
    "(yes|no)?",
    "a*b{2,5}",
    "x|yy|zzz",
    r"[^\"<]{3,9}",
    r"(/[a-z_]+){1,4}\.py",
    "(?i:ok)",
]


@pytest.mark.parametrize("regex", [*REGEXES, "^[0-9]+$", "é+", "(.|\n){5}"])
def test_outputs_match_the_regex(compiler: GrammarCompiler, tokenizer: Tokenizer, regex: str) -> None:
    grammar = compiler.compile(StructuredOutput(regex=regex))
    texts = [RandomModel(tokenizer, VOCAB_SIZE, seed).write(grammar.start()) for seed in range(8)]
    assert all(ids is not None and re.fullmatch(regex, tokenizer.decode(ids)) for ids in texts)


def test_choices_give_each_of_the_choices_and_nothing_else(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    choices = ["red", "redder", 'with "quotes"\n', "", "grün", "e\u0301", "<tool_call>", "a/b\\c"]
    grammar = compiler.compile(StructuredOutput(choice=choices))
    written = [RandomModel(tokenizer, VOCAB_SIZE, seed).write(grammar.start()) for seed in range(150)]
    assert {tokenizer.decode(ids or ()) for ids in written} == set(choices)


def test_a_lark_grammar_is_followed(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    lark = 'start: sum ";"\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/'
    grammar = compiler.compile(StructuredOutput(lark=lark))
    for seed in range(20):
        ids = RandomModel(tokenizer, VOCAB_SIZE, seed, hints=(";", "+")).write(grammar.start())
        assert ids is not None
        assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})*;", tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (StructuredOutput(regex="[a"), "unclosed character class"),
        (StructuredOutput(regex="(?=a)b"), "look-around"),
        (StructuredOutput(lark="start: missing"), 'unknown name: "missing"'),
        (StructuredOutput(lark="no rule"), "Expected"),
        (StructuredOutput(json_schema={"$ref": "#/nowhere"}), "'/nowhere' does not exist"),
        (StructuredOutput(json_schema={"type": "string", "minLength": 5, "maxLength": 2}), "minLength"),
        (StructuredOutput(json_schema={"enum": []}), "Unsatisfiable"),
        (StructuredOutput(json_schema={"properties": []}), "properties must be an object"),
    ],
)
def test_a_wrong_grammar_is_one_line_with_the_reason(
    compiler: GrammarCompiler, output: StructuredOutput, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        compiler.compile(output)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (StructuredOutput(regex="[a"), "structured output: the regex cannot be used: unclosed character class"),
        (StructuredOutput(regex="x" * 5000 + "/\n)"), "structured output: the regex cannot be used: unopened group"),
        (
            StructuredOutput(lark="start: /[a/"),
            'structured output: no grammar can be made: at 1(8): invalid regex "[a": unclosed character class',
        ),
        (
            StructuredOutput(lark="start: missing"),
            'structured output: no grammar can be made: at 1(8): unknown name: "missing"',
        ),
        (
            StructuredOutput(json_schema={"type": "string", "pattern": "[a"}),
            "structured output: no grammar can be made: pattern: unclosed character class",
        ),
    ],
)
def test_an_error_ends_where_the_grammars_inner_life_begins(
    compiler: GrammarCompiler, output: StructuredOutput, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        compiler.compile(output)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "output",
    [
        StructuredOutput(choice=[f"value {i}" for i in range(100_000)]),
        StructuredOutput(json_schema={"properties": {f"p{i}": {"type": "string"} for i in range(10_000)}}),
    ],
)
def test_what_llguidance_would_take_long_over_is_refused_at_once(
    compiler: GrammarCompiler, output: StructuredOutput
) -> None:
    with pytest.raises(UsageError, match="use one of at most 131072"):
        compiler.compile(output)


def test_a_regex_that_is_too_large_is_refused_at_once(compiler: GrammarCompiler) -> None:
    with pytest.raises(UsageError, match="too large: use a simpler one"):
        compiler.compile(StructuredOutput(regex="((a{100}){100}){100}"))


def test_keywords_that_are_ignored_are_named(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(StructuredOutput(json_schema={"type": "string", "not": {"const": "a"}}))
    assert "not" in " ".join(grammar.warnings)


STATES = [
    StructuredOutput(json_schema=POINT),
    StructuredOutput(json_schema={"enum": ["alpha beta", "alpha gamma", "e\u0301 \u212b"]}),
    StructuredOutput(regex="ab*c?"),
    StructuredOutput(lark='start: <tool_call> "return first" /[0-9]+/ </tool_call>'),
]


@pytest.mark.parametrize("output", STATES)
def test_the_mask_agrees_with_num_valid_and_with_accept(
    compiler: GrammarCompiler, tokenizer: Tokenizer, output: StructuredOutput
) -> None:
    grammar = compiler.compile(output)
    model = RandomModel(tokenizer, VOCAB_SIZE, 3)
    ids = model.write(grammar.start())
    assert ids is not None
    state = grammar.start()
    for token_id in ids[:40]:
        allowed = set(model.allowed(state).tolist())
        assert {i for i in range(-1, VOCAB_SIZE + 40) if state.num_valid([i])} == allowed
        refused = min(set(range(VOCAB_SIZE)) - allowed)
        with pytest.raises(CodemillError, match=f"token {refused} "):
            state.copy().accept(refused)
        assert allowed.isdisjoint(tokenizer.eos_token_ids) or state.is_accepting
        state.accept(token_id)
    start = grammar.start()
    assert start.num_valid([*ids[:40], VOCAB_SIZE, *ids]) == min(40, len(ids))
    assert start.num_valid(ids) == len(ids)


@pytest.mark.parametrize("output", [*STATES, StructuredOutput(choice=["one two three", "one two four", "\n\n  deep"])])
def test_forced_tokens_one_at_a_time_are_those_of_the_whole_list(
    compiler: GrammarCompiler, tokenizer: Tokenizer, output: StructuredOutput
) -> None:
    _check_forced(compiler, tokenizer, VOCAB_SIZE, output)


def test_forced_tokens_with_qwens_vocabulary(
    qwen_compiler: GrammarCompiler, qwen: Tokenizer, shared_data: Path
) -> None:
    for schema in client_schemas(shared_data)[::5]:
        _check_forced(qwen_compiler, qwen, QWEN_ROWS, StructuredOutput(json_schema=schema))


def _check_forced(compiler: GrammarCompiler, tokenizer: Tokenizer, vocab_size: int, output: StructuredOutput) -> None:
    state = compiler.compile(output).start()
    ids = RandomModel(tokenizer, vocab_size, 5).write(state.copy())
    assert ids is not None
    num_forced, expected = 0, []
    for token_id in ids:
        forced = state.forced_tokens()
        assert forced[: len(expected)] == expected
        num_forced += bool(forced)
        state.accept(token_id)
        expected = forced[1:]
    assert num_forced > 0 or output.regex is not None


def test_end_of_text_is_allowed_where_the_text_is_complete(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(StructuredOutput(regex="ab*"))
    model = RandomModel(tokenizer, VOCAB_SIZE, 0)
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    first, second = tokenizer.eos_token_ids
    for eos in (None, (first,), (second,), ()):
        ends = set((first, second) if eos is None else eos)
        state = grammar.start(eos)
        assert not ends & set(model.allowed(state).tolist())
        state.accept(a)
        assert state.is_accepting
        assert not state.is_finished
        assert set(model.allowed(state).tolist()) == {b} | ends
        assert {i for i in (first, second) if state.num_valid([i])} == ends
    state = grammar.start()
    state.accept(a)
    state.accept(second)
    assert state.is_finished
    assert not state.is_accepting
    assert len(model.allowed(state)) == 0
    assert state.forced_tokens() == []
    assert state.num_valid([b]) == 0


def test_a_state_is_finished_where_nothing_may_follow(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.compile(StructuredOutput(choice=["a"])).start(())
    state.accept(tokenizer.encode("a")[0])
    assert state.is_finished
    assert state.is_accepting
    assert state.forced_tokens() == []


def test_states_and_copies_are_independent(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(StructuredOutput(regex="a(b|c)"))
    (a,), (b,), (c,) = (tokenizer.encode(letter) for letter in "abc")
    one, other = grammar.start(), grammar.start()
    one.accept(a)
    fork = one.copy()
    one.accept(b)
    assert other.num_valid([a, c]) == 2
    assert fork.num_valid([c]) == 1
    assert not fork.is_finished
    assert one.is_finished


def test_control_tokens_are_never_text(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.compile(StructuredOutput(regex="(?s:.*)")).start()
    allowed = set(RandomModel(tokenizer, VOCAB_SIZE, 0).allowed(state).tolist())
    assert allowed & set(tokenizer.control_tokens.values()) == set(tokenizer.eos_token_ids)


def test_rows_beyond_the_vocabulary_are_never_allowed(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE + 45)
    for lark in ("start: /(?s:.*)/", "start: <[^5]>", f"start: <[{VOCAB_SIZE + 7}]>"):
        state = compiler.compile(StructuredOutput(lark=lark)).start()
        row = np.full(-(-(VOCAB_SIZE + 45) // 32), -1, dtype=np.int32)
        state.fill_mask(row)
        assert not np.unpackbits(row.view(np.uint8), bitorder="little")[VOCAB_SIZE:].any()
        assert state.num_valid([VOCAB_SIZE + 7]) == 0


def test_the_masks_of_a_batch(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    outputs = [
        StructuredOutput(regex="[a-f]+"),
        StructuredOutput(json_object=True),
        StructuredOutput(choice=["x", "y"]),
    ]
    states = [compiler.compile(output).start() for output in outputs]
    mask = allowed_tokens([states[0], None, *states[1:]], VOCAB_SIZE, "cpu")
    assert mask.shape == (4, VOCAB_SIZE)
    assert mask.dtype == torch.bool
    assert mask[1].all()
    for row, state in zip((0, 2, 3), states, strict=True):
        assert mask[row].nonzero()[:, 0].tolist() == [i for i in range(VOCAB_SIZE) if state.num_valid([i])]
    odd = GrammarCompiler(tokenizer, VOCAB_SIZE + 5).compile(outputs[0]).start()
    assert allowed_tokens([odd, None], VOCAB_SIZE + 5, "cpu")[:, VOCAB_SIZE:].tolist() == [[False] * 5, [True] * 5]


def test_grammars_are_compiled_once_and_the_last_ones_are_kept(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, max_grammars=2)
    outputs = [StructuredOutput(regex=letter) for letter in "abc"]
    first, second = (compiler.compile(output) for output in outputs[:2])
    assert compiler.compile(StructuredOutput(regex="a")) is first
    compiler.compile(outputs[2])
    assert compiler.compile(outputs[0]) is first
    assert compiler.compile(outputs[1]) is not second


END_TAG = ("\n", "\n</par", "a", "</", "\n</parameter", "\n")


def test_a_grammar_that_is_used_up_is_compiled_again(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    tags = r"<\/parameter>|<parameter=|<function=|<tool_call>"
    text = f"/(?s:.*)/ & ~/(?s:.*)({tags})(?s:.*)/ & /(?s:.){{2,5000}}/"  # more states than llguidance grants
    output = StructuredOutput(lark=f'start: text "x"\ntext[lazy]: T "\\n</parameter>\\n"\nT: {text}')
    grammar = compiler.compile(output)
    models = [RandomModel(tokenizer, VOCAB_SIZE, seed, hints=END_TAG) for seed in range(50)]
    with pytest.raises(CodemillError, match="the grammar cannot go on"):
        [model.write(grammar.start()) for model in models]
    again = compiler.compile(output)
    assert again is not grammar
    assert again.start().num_valid(tokenizer.encode("aa\n")) > 0


def test_a_compiler_is_shared_by_threads(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE)
    written: dict[int, list[str]] = {}

    def work(number: int) -> None:
        grammars = [compiler.compile(StructuredOutput(json_schema=schema)) for schema in SCHEMAS[11:40]]
        models = [RandomModel(tokenizer, VOCAB_SIZE, seed) for seed in range(len(grammars))]
        texts = [model.write(grammar.start()) for model, grammar in zip(models, grammars, strict=True)]
        written[number] = [tokenizer.decode(ids or ()) for ids in texts]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 4
    assert all(texts == written[0] for texts in written.values())


def test_very_long_tokens_do_not_panic(tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]) -> None:
    class LongTokens:
        """The tokenizer, with the text of one token 5,000 times as long."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def token_bytes(self, token_id: int) -> bytes:
            return tokenizer.token_bytes(token_id) * (5000 if token_id == 290 else 1)

    compiler = GrammarCompiler(LongTokens(), VOCAB_SIZE)  # type: ignore[arg-type]
    state = compiler.compile(StructuredOutput(regex="(?s:.*)")).start()
    assert state.num_valid([290]) == 0
    assert state.num_valid([289]) == 1
    assert capfd.readouterr().err == ""


def test_a_checkpoint_without_end_of_text_is_refused(tokenizer: Tokenizer) -> None:
    class NoEnd:
        eos_token_ids = ()

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    with pytest.raises(UsageError, match="end-of-text"):
        GrammarCompiler(NoEnd(), VOCAB_SIZE).compile(StructuredOutput(regex="a"))  # type: ignore[arg-type]


def test_without_llguidance_the_error_says_what_to_install(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(CodemillError, match=r"pip install 'codemill\[serve\]'"):
        GrammarCompiler(tokenizer, VOCAB_SIZE).compile(StructuredOutput(regex="a"))
