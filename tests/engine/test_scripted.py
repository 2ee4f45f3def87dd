import asyncio

from codemill import SamplingParams
from codemill.engine.scripted import ScriptedEngine
from codemill.engine.updates import StreamUpdate


def test_an_aborted_request_reports_the_end_of_each_sample_once() -> None:
    engine = ScriptedEngine(lambda prompt: "some words that take a while", token_seconds=0.01)

    async def finished() -> list[StreamUpdate]:
        ends = []
        async for update in engine.stream("prompt", SamplingParams(n=2), request_id="r"):
            if update.finish_reason is not None:
                ends.append(update)
                if len(ends) == 1:
                    engine.abort("r")
        counts = (await engine.metrics())["requests_finished"]
        assert sum(counts.values()) == 2
        return ends

    assert [(end.index, end.finish_reason) for end in asyncio.run(finished())] == [(0, "stop"), (1, "abort")]
