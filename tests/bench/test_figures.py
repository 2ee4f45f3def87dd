"""From timings to figures."""

import pytest

from codemill.bench.engines import Timing
from codemill.bench.engines.openvino import timing_of_steps
from codemill.bench.figures import Contestant, FigureMaker, best_setting
from codemill.bench.machine import Machine
from codemill.bench.roofline import Roofline
from codemill.bench.workload import Measurement, Workload
from codemill.errors import UsageError
from codemill.presets import PRESETS

CONFIG = PRESETS["qwen3-0.6b"].config
MACHINE = Machine("a machine", 2, 2, {1 << 30: 20e9, 1 << 20: 80e9}, {"bfloat16": 1e11}, {"bfloat16": 2e11})
WORKLOAD = Workload((512,), (0, 512), (1, 2), 32)


def maker(ours: list[Timing], theirs: list[Timing]) -> FigureMaker:
    runs = (WORKLOAD.decode(512, 1), WORKLOAD.prefill(512))
    mine, peers = (dict.fromkeys(runs, "default"), dict.fromkeys(runs, "BF16"))
    contestants = {
        "codemill": Contestant(1.0, 200_000_000, 1_500_000_000, 2_000_000_000, mine, dict.fromkeys(runs, ours)),
        "llama.cpp": Contestant(3.0, 0, 3_000_000_000, 2_500_000_000, peers, dict.fromkeys(runs, theirs)),
    }
    return FigureMaker(WORKLOAD, Roofline(CONFIG), MACHINE, contestants)


def test_values_are_medians_and_ratios_those_of_rounds() -> None:
    ours = [Timing(1.0, 2.0), Timing(2.0, 4.0), Timing(4.0, 16.0)]
    theirs = [Timing(3.0, 2.0), Timing(4.0, 16.0), Timing(8.0, 32.0)]
    figures = {figure.name: figure for figure in maker(ours, theirs).figures()}
    prefill, decode = figures["prefill 512"], figures["decode after 512"]
    assert prefill.value == 512 / 2.0
    assert prefill.peers["llama.cpp"].value == 512 / 4.0
    assert prefill.peers["llama.cpp"].ratio == 2.0
    assert decode.value == 32 / 4.0
    assert decode.peers["llama.cpp"].ratio == 2.0
    assert decode.peers["llama.cpp"].setting == "BF16"
    assert "decode after 0" not in figures  # was not measured
    first = figures["time to first token, 512"]
    assert (first.value, first.peers["llama.cpp"].value) == (2.0, 4.0)


def test_rooflines() -> None:
    figures = {figure.name: figure for figure in maker([Timing(1.0, 4.0)], []).figures()}
    roofline = Roofline(CONFIG)
    decode, prefill = figures["decode after 512"], figures["prefill 512"]
    # 512 tokens, and half of the 33 that come.
    assert decode.num_bytes == roofline.weight_bytes + 528.5 * roofline.kv_bytes_per_token
    assert decode.roofline == pytest.approx(20e9 / decode.num_bytes)
    assert decode.fraction == pytest.approx(8 / decode.roofline)
    assert prefill.roofline == pytest.approx(512 * 2e11 / roofline.prefill_operations(512))
    first = figures["time to first token, 512"]
    assert first.roofline is not None
    assert first.fraction == pytest.approx(first.roofline / 1.0)
    memory = figures["peak memory over weights"]
    assert memory.value == pytest.approx(2e9 / roofline.weight_bytes)
    assert memory.fraction == pytest.approx(1 / memory.value)


def test_bandwidth_is_that_of_a_buffer_of_the_size() -> None:
    assert MACHINE.read_limit(2 << 20) == 80e9
    assert MACHINE.read_limit(2e9) == 20e9


def test_compute_takes_over_where_it_is_slower() -> None:
    assert MACHINE.seconds(20e9, 1e9, "bfloat16") == 1.0
    assert MACHINE.seconds(1e9, 4e11, "bfloat16") == 2.0


def test_memory_is_told_apart() -> None:
    figures = {figure.name: figure for figure in maker([Timing(1.0, 4.0)], [Timing(1.0, 4.0)]).figures()}
    roofline = Roofline(CONFIG)
    cache = (512 + 33) * roofline.kv_bytes_per_token
    parts = [figure.value for name, figure in figures.items() if name.startswith("of that")]
    assert parts == [roofline.weight_bytes, cache, 200e6, 1.8e9 - roofline.weight_bytes - cache]
    assert sum(parts) == figures["peak memory"].value
    assert figures["peak memory"].roofline == roofline.weight_bytes + cache
    assert figures["peak memory"].peers["llama.cpp"].ratio == 1.5
    assert figures["peak memory after loading"].peers["llama.cpp"].ratio == 1.25
    assert figures["load"].peers["llama.cpp"].ratio == 3.0
    own = figures["the same without Python and PyTorch"]
    assert own.value == pytest.approx(1.8e9 / (roofline.weight_bytes + cache))


def test_the_runs_of_a_round() -> None:
    assert WORKLOAD.measurements() == [
        Measurement(1, 33, 1),
        Measurement(512, 1, 1),
        Measurement(512, 33, 1),
        Measurement(1, 33, 2),
        Measurement(512, 33, 2),
    ]


@pytest.mark.parametrize(
    ("workload", "trials"),
    [
        (WORKLOAD, [Measurement(512, 17, 1), Measurement(256, 17, 2)]),
        (Workload((2048,), (0,), (8,), 4), [Measurement(512, 5, 1), Measurement(64, 5, 8)]),
        (Workload((64,), (), (1,), 32), [Measurement(64, 1, 1)]),
        (Workload((), (0,), (1,), 1), [Measurement(1, 2, 1)]),
    ],
)
def test_trials_of_settings_take_no_more_room_than_what_is_measured(
    workload: Workload, trials: list[Measurement]
) -> None:
    assert workload.trials() == trials
    assert max(trial.num_tokens for trial in trials) <= workload.max_tokens


def test_the_context_limits_the_workload() -> None:
    within = Workload((512, 2048), (0, 1000), (1,), 32).within(1024)
    assert (within.prompt_lengths, within.decode_after) == ((512,), (0,))
    with pytest.raises(UsageError, match="context of 16 tokens is too short"):
        WORKLOAD.within(16)


def test_the_best_setting_is_the_one_that_is_fastest_at_what_counts() -> None:
    trials = {"a": Timing(1.0, 4.0), "b": Timing(2.0, 3.0)}
    assert best_setting(Measurement(512, 33, 1), trials) == "b"
    assert best_setting(Measurement(512, 1, 1), trials) == "a"


def test_steps_in_which_only_some_sequences_move_are_no_decode_of_the_batch() -> None:
    # The first prompt decodes while the second is still read; then both; then one alone.
    timing = timing_of_steps(1.0, [100.0, 300.0, 320.0, 350.0, 360.0], [1, 2, 2, 2, 1], 2, 4)
    assert timing.decode_seconds == pytest.approx(3 * 0.025)
    assert timing.first_seconds == pytest.approx(1.0 - 0.06)
    assert timing_of_steps(0.5, [480.0], [2], 2, 1).decode_seconds == 0
