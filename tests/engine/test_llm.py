"""The `LLM`: what it takes, what it refuses, streams, chats, seeds and defaults."""

import asyncio
import dataclasses
import itertools
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from codemill import LLM, SamplingParams, StreamPiece
from codemill.config import QuantizationConfig, RopeConfig, YarnConfig
from codemill.engine.async_engine import AsyncEngine
from codemill.engine.generation_config import GenerationConfig
from codemill.errors import CodemillError, UsageError
from codemill.models import Cache, CausalLM, ForwardContext, save_pretrained

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)


class ScriptedModel(CausalLM):
    """Says the tokens of a script after any prompt of one token: for tests of text, where numbers do not matter."""

    script: list[int]

    def compute(self, input_ids: Tensor, context: ForwardContext, cache: Cache | None = None) -> Tensor:
        """The hidden state of a token is its position."""
        (segment,) = context.segments.each
        positions = torch.arange(segment.num_past, segment.length, dtype=torch.float32)
        return positions.view(1, -1, 1).expand(1, -1, self.config.hidden_size)

    def logits(self, hidden: Tensor, adapters: object = ()) -> Tensor:
        return torch.eye(self.config.vocab_size)[[self.script[int(position)] for position in hidden[:, 0]]]


@pytest.fixture(scope="module")
def scripted_llm(dense_llm) -> LLM:
    return LLM.from_parts(ScriptedModel(dense_llm.model.config), dense_llm.tokenizer)


# Prompts


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("", "the prompt is empty"),
        (["a", ""], "prompts[1] is empty"),
        ([[1], []], "prompts[1] is empty"),
        ([[1, 2, 320]], "the prompt has token id 320: the model's vocabulary has ids 0 to 319"),
        ([[-1]], "token id -1"),
        ([[1] * 2048], "the prompt has 2048 tokens, but the context (max_model_len) holds 2048"),
        ([[1, 2], [1] * 3000], "prompts[1] has 3000 tokens"),
        (7, "prompts are of type int"),
        (None, "prompts are of type NoneType"),
        (b"def", "prompts are of type bytes"),
        ([1, 2], "prompts is a list of numbers: give [ids]"),
        ([None], "prompts[0] is of type NoneType"),
        (["a", b"b"], "prompts[1] is of type bytes"),
        ([["a"]], "prompts[0] is a list of something else"),
        ([[1.0]], "prompts[0] is a list of something else"),
        ([[True]], "prompts[0] is a list of something else"),
    ],
)
def test_a_bad_prompt_is_one_line_that_names_it(dense_llm, prompts, said):
    with pytest.raises(UsageError) as error:
        dense_llm.generate(prompts, GREEDY)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_and_ids_are_the_same_prompt(dense_llm):
    text = "for value in"
    ids = dense_llm.tokenizer.encode(text)
    by_text, by_ids = dense_llm.generate(text, GREEDY)[0], dense_llm.generate([ids], GREEDY)[0]
    assert by_text.outputs == by_ids.outputs
    assert (by_text.prompt, by_ids.prompt) == (text, None)
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == ids


def test_control_tokens_in_text_are_text(dense_llm):
    (output,) = dense_llm.generate("<|im_end|>", GREEDY)
    assert dense_llm.tokenizer.control_tokens["<|im_end|>"] not in output.prompt_token_ids


def test_outputs_come_in_the_order_of_the_prompts(dense_llm):
    prompts = ["a", "a longer prompt than that", "mid size"] * 7
    outputs = dense_llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == prompts
    assert dense_llm.generate([], GREEDY) == []


# Parameters


def test_params_for_each_prompt(dense_llm):
    each = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 2)]
    outputs = dense_llm.generate(["a", "b"], each)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2]
    with pytest.raises(UsageError, match="2 params for 3 prompts"):
        dense_llm.generate(["a", "b", "c"], each)
    with pytest.raises(UsageError, match="params is of type dict"):
        dense_llm.generate("a", {"temperature": 1})


@pytest.mark.parametrize("params", [SamplingParams(stop_token_ids=[320]), SamplingParams(logit_bias={320: 1})])
def test_ids_outside_the_vocabulary_are_refused(dense_llm, params):
    with pytest.raises(UsageError, match="token id 320 is outside the vocabulary"):
        dense_llm.generate("a", params)


def test_the_context_ends_the_output(dense_llm):
    llm = LLM.from_parts(dense_llm.model, dense_llm.tokenizer, max_model_len=10)
    (output,) = llm.generate([[5] * 7], SamplingParams(max_tokens=100, ignore_eos=True))
    assert (len(output.outputs[0].token_ids), output.outputs[0].finish_reason) == (3, "length")
    with pytest.raises(UsageError, match="has 10 tokens, but the context"):
        llm.generate([[5] * 10])


@pytest.mark.parametrize(
    ("length", "said"), [(2049, "the model's context has 2048 tokens"), (1, "at least 2"), ("9", "must be an integer")]
)
def test_a_context_the_model_does_not_have(dense_llm, length, said):
    with pytest.raises(UsageError, match=said):
        LLM.from_parts(dense_llm.model, dense_llm.tokenizer, max_model_len=length)


def test_yarn_extends_the_context(dense_llm):
    model = CausalLM(dataclasses.replace(dense_llm.model.config, rope=RopeConfig(1e4, 1.0, YarnConfig(4.0, 1024))))
    assert LLM.from_parts(model, dense_llm.tokenizer).max_model_len == 4096


def test_quantization_packs_the_weights():
    llm = LLM(quantization="int4")
    assert llm.model.config.quantization == QuantizationConfig(4)
    whole = sum(parameter.nbytes for parameter in LLM().model.parameters())
    assert sum(parameter.nbytes for parameter in llm.model.parameters()) < 0.3 * whole
    assert llm.generate("def add(", SamplingParams(max_tokens=4, temperature=0))[0].outputs[0].token_ids


def test_an_unknown_quantization_lists_the_choices():
    with pytest.raises(UsageError, match="quantization 'int3' is unknown: choose int4, int8"):
        LLM(quantization="int3")


# Checkpoints


@pytest.fixture
def checkpoint(dense_llm, tmp_path) -> Path:
    save_pretrained(dense_llm.model, tmp_path)
    dense_llm.tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.9, "top_k": 9}')
    return tmp_path


def test_a_checkpoint_brings_weights_tokenizer_and_defaults(dense_llm, checkpoint):
    llm = LLM(checkpoint, dtype="float32", device="cpu")
    params = SamplingParams(temperature=0.9, top_k=9, seed=1, max_tokens=8)
    expected = dense_llm.generate("for value", params)[0].outputs
    assert llm.generate("for value", SamplingParams(seed=1, max_tokens=8))[0].outputs == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_model_len": 5000}, "max_model_len = 5000: the model's context has 2048 tokens"),
        ({"dtype": "int3"}, "dtype int3 is not supported"),
        ({"device": "abacus"}, "device 'abacus' is unknown"),
        ({"model": "no/such/place/at/all"}, "no/such/place/at/all: no such directory"),
    ],
)
def test_a_wrong_argument_is_one_line(checkpoint, changes, said):
    with pytest.raises(UsageError) as error:
        LLM(**{"model": checkpoint, **changes})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# Defaults of the checkpoint


def test_defaults_of_the_checkpoint_apply(dense_llm):
    defaults = GenerationConfig(do_sample=True, temperature=1.5, repetition_penalty=1.2, max_new_tokens=5)
    llm = LLM.from_parts(dense_llm.model, dense_llm.tokenizer, defaults)
    explicit = SamplingParams(temperature=1.5, repetition_penalty=1.2, max_tokens=5, seed=4)
    assert llm.generate("a", SamplingParams(seed=4))[0].outputs == dense_llm.generate("a", explicit)[0].outputs


def test_end_of_text_of_config_checkpoint_and_tokenizer(dense_llm):
    (free,) = dense_llm.generate("a", SamplingParams(max_tokens=6, ignore_eos=True))
    third = free.outputs[0].token_ids[2]
    llm = LLM.from_parts(dense_llm.model, dense_llm.tokenizer, GenerationConfig(eos_token_ids=(third, 999_999, -1)))
    output = llm.generate("a", SamplingParams(max_tokens=6))[0].outputs[0]
    assert output.token_ids == free.outputs[0].token_ids[:3]
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    end_of_turn = dense_llm.tokenizer.control_tokens["<|im_end|>"]
    output = dense_llm.generate("a", SamplingParams(max_tokens=6, logit_bias={end_of_turn: 100}))[0].outputs[0]
    assert (output.text, output.token_ids, output.finish_reason) == ("", [end_of_turn], "stop")


# Seeds


def test_a_seed_repeats_its_output(dense_llm):
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=11, n=2)
    first, second = (dense_llm.generate("a", params)[0].outputs for _ in range(2))
    assert first == second
    assert first[0].token_ids != first[1].token_ids
    assert dense_llm.generate("a", dataclasses.replace(params, seed=12))[0].outputs != first


def test_the_seed_of_an_llm_is_an_integer(dense_llm):
    with pytest.raises(UsageError, match="seed = 'a': must be an integer"):
        LLM.from_parts(dense_llm.model, dense_llm.tokenizer, seed="a")


def test_requests_without_a_seed_differ_and_the_program_repeats(dense_llm):
    params = SamplingParams(max_tokens=10, temperature=1.0)

    def run(seed: int) -> list[list[int]]:
        llm = LLM.from_parts(dense_llm.model, dense_llm.tokenizer, seed=seed)
        return [output.outputs[0].token_ids for _ in range(2) for output in llm.generate(["a", "a"], params)]

    assert len({tuple(ids) for ids in run(0)}) == 4
    assert run(0) == run(0) != run(1)


# Streams


def test_a_piece_is_text(capsys):
    piece = StreamPiece("ab", (1, 2), "stop", "x")
    print(piece, end="")
    assert capsys.readouterr().out == "ab"
    assert piece + "c" == "".join([piece, "c"]) == f"{piece}c" == "abc"
    assert type(piece.text) is str
    assert (piece.text, piece.token_ids, piece.finish_reason, piece.stop_reason) == ("ab", (1, 2), "stop", "x")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.one_of(
        st.lists(st.integers(0, 319), min_size=1, max_size=15),
        st.text(min_size=1, max_size=10).map(lambda text: list(text.encode())),
    ),
    data=st.data(),
)
def test_streams_join_to_the_text_whatever_stops_them(scripted_llm, script, data):
    scripted_llm.model.script = script
    whole = scripted_llm.tokenizer.decode(script) or "?"
    spans = [whole[i:j] for i, j in itertools.combinations(range(len(whole) + 1), 2) if j - i < 5]
    stop = data.draw(st.lists(st.sampled_from(spans), max_size=2))
    params = SamplingParams(max_tokens=len(script), stop=stop, skip_special_tokens=False, ignore_eos=True)
    pieces = list(scripted_llm.stream([0], params))
    output = scripted_llm.generate([[0]], params)[0].outputs[0]
    assert "".join(pieces) == output.text
    assert all(piece for piece in pieces[:-1]), "only the last piece may be empty"
    assert [i for piece in pieces for i in piece.token_ids] == output.token_ids == script[: len(output.token_ids)]
    assert (pieces[-1].finish_reason, pieces[-1].stop_reason) == (output.finish_reason, output.stop_reason)
    assert not any(text in output.text for text in stop)
    ends = [whole.find(text) + len(text) for text in stop if text in whole]
    assert output.text == whole[: min(ends)][: -len(output.stop_reason)] if ends else output.text == whole


def test_pieces_arrive_as_they_are_made(scripted_llm):
    scripted_llm.model.script = scripted_llm.tokenizer.encode("one two st") * 2
    stream = scripted_llm.stream([0], SamplingParams(max_tokens=20, stop="stop"))
    assert next(stream) == "o"
    with pytest.raises(UsageError, match="token id 999"):
        scripted_llm.stream([999])  # at once, not with the first piece


def test_the_last_piece_has_the_metrics(dense_llm):
    *pieces, last = dense_llm.stream("a", GREEDY)
    assert [piece.metrics for piece in pieces] == [None] * len(pieces)
    assert (last.metrics.num_prompt_tokens, last.metrics.num_output_tokens) == (1, 8)
    assert 0 < last.metrics.first_token_seconds < last.metrics.total_seconds
    assert last.metrics.tokens_per_second > 0


def test_an_interrupted_stream_leaves_nothing_behind(dense_llm):
    expected = dense_llm.generate("a", GREEDY)[0].outputs
    stream = dense_llm.stream("a", GREEDY)
    next(stream)
    assert not torch.is_inference_mode_enabled()
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert dense_llm.generate("a", GREEDY)[0].outputs == expected
    both = zip(dense_llm.stream("a", GREEDY), dense_llm.stream("a", GREEDY), strict=True)
    assert all(first == second for first, second in both), "streams do not disturb each other"


def test_an_interrupt_inside_a_step_leaves_nothing_behind(dense_llm, monkeypatch):
    expected = dense_llm.generate("a", GREEDY)[0].outputs
    with monkeypatch.context() as patch:
        patch.setattr(dense_llm.model, "logits", lambda *_: (each for each in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(dense_llm.stream("a", GREEDY))
    assert not torch.is_inference_mode_enabled()
    assert dense_llm.generate("a", GREEDY)[0].outputs == expected


class PiecesReadSlowly(list):
    """Text pieces; between reading and counting them another thread has time for a step."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self._llm = llm

    def __getitem__(self, index):
        found = super().__getitem__(index)
        thread = threading.Thread(target=self._step)
        thread.start()
        thread.join(0.05)
        return found

    def _step(self) -> None:
        with self._llm.lock:
            self._llm.engine.step()


def test_a_stream_loses_nothing_that_another_threads_step_brings(scripted_llm, monkeypatch):
    scripted_llm.model.script = scripted_llm.tokenizer.encode("return first + second, then stop")[:12]
    params = SamplingParams(max_tokens=len(scripted_llm.model.script), ignore_eos=True, temperature=0.0)
    expected = scripted_llm.generate([[5]], params)[0].outputs[0].text
    build = scripted_llm.builder.build

    def build_slowly(*args, **options):
        request = build(*args, **options)
        request.sequences[0].text_pieces = PiecesReadSlowly(scripted_llm)
        return request

    monkeypatch.setattr(scripted_llm.builder, "build", build_slowly)
    assert "".join(scripted_llm.stream([5], params)) == expected


def test_weights_that_fail_half_way_leave_nothing_of_the_old_ones_in_the_cache(dense_llm, monkeypatch):
    model = CausalLM(dense_llm.model.config)
    model.load_state_dict(dense_llm.model.state_dict())
    llm = LLM.from_parts(model, dense_llm.tokenizer)
    prompt = [[1, 2, 3, 4] * 20]
    llm.generate(prompt, GREEDY)
    names = [name for name, _ in model.named_parameters()][-3:]
    state = {name: torch.randn_like(model.get_parameter(name)) for name in names}
    state[names[1]] = FailingTensor(state[names[1]])
    with pytest.raises(MemoryError):
        llm.update_weights(state)
    found = llm.generate(prompt, GREEDY)[0]
    assert found.metrics.num_cached_tokens == 0
    assert found.outputs == LLM.from_parts(model, dense_llm.tokenizer).generate(prompt, GREEDY)[0].outputs
    with pytest.raises(UsageError):
        llm.update_weights({"nothing": torch.ones(1)})
    assert llm.generate(prompt, GREEDY)[0].metrics.num_cached_tokens > 0, "nothing was changed"


class FailingTensor(Tensor):
    """There is no memory to convert it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is Tensor.copy_:
            raise MemoryError
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_closed_llm_says_so(dense_llm):
    llm = LLM.from_parts(dense_llm.model, dense_llm.tokenizer)
    engine = AsyncEngine(llm)
    llm.close()
    llm.close()
    for use in (
        lambda: llm.generate("a", GREEDY),
        lambda: llm.stream("a", GREEDY),
        lambda: llm.chat([{"role": "user", "content": "a"}], GREEDY),
        lambda: llm.update_weights({}),
        lambda: llm.add_adapter("a", "b"),
        lambda: llm.remove_adapter("a"),
        llm.sleep,
        llm.wake,
        lambda: asyncio.run(engine.generate("a", GREEDY)),
        lambda: AsyncEngine(llm),
    ):
        with pytest.raises(UsageError, match="this LLM is closed: make a new one"):
            use()
    assert llm.metrics["running"] == 0
    engine.shutdown()


def test_closing_ends_a_stream_that_has_begun(dense_llm):
    llm = LLM.from_parts(dense_llm.model, dense_llm.tokenizer)
    begun = llm.stream("a", GREEDY)
    next(begun)
    llm.close()
    with pytest.raises(UsageError, match="this LLM is closed: make a new one"):
        list(begun)
    assert llm.engine.is_idle


def test_a_stream_has_one_sample(dense_llm):
    with pytest.raises(UsageError, match="a stream has one sample"):
        dense_llm.stream("a", SamplingParams(n=2))


# Chats


def test_chat_is_generate_on_the_rendered_conversation(dense_llm):
    messages = [{"role": "user", "content": "Add <|im_end|> two numbers."}]
    (output,) = dense_llm.chat(messages, GREEDY)
    assert output.prompt == dense_llm.tokenizer.render(messages)
    assert output.prompt_token_ids == dense_llm.tokenizer.encode_chat(messages)
    assert output.outputs == dense_llm.generate([output.prompt_token_ids], GREEDY)[0].outputs
    assert "".join(dense_llm.stream_chat(messages, GREEDY)) == output.outputs[0].text


def test_several_conversations_and_tools(dense_llm):
    conversations = [[{"role": "user", "content": text}] for text in ("one", "two")]
    tools = [{"type": "function", "function": {"name": "run", "description": "", "parameters": {"type": "object"}}}]
    outputs = dense_llm.chat(conversations, GREEDY, tools)
    expected = [dense_llm.tokenizer.encode_chat(messages, tools) for messages in conversations]
    assert [output.prompt_token_ids for output in outputs] == expected


@pytest.mark.parametrize("messages", [[], "hello", [{"content": "no role"}], [["no message"]], 5])
def test_a_malformed_conversation_is_refused(dense_llm, messages):
    with pytest.raises(UsageError):
        dense_llm.chat(messages, GREEDY)


def test_nan_logits_are_one_line(dense_llm, tokenizer):
    model = CausalLM(dense_llm.model.config)
    model.load_state_dict(dense_llm.model.state_dict())
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(CodemillError, match="the model produced NaN or infinite logits at output token 1"):
        LLM.from_parts(model, tokenizer).generate("a", GREEDY)
