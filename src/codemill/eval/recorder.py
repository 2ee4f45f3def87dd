"""Keeps verdicts as they come, and knows which samples an earlier part of the run has already judged."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from codemill.eval.answers import Key
from codemill.eval.evaluation import Listener, Tally
from codemill.eval.judging import Judged
from codemill.eval.sample_log import SampleLog, SampleRecord
from codemill.eval.suite import Judgement

NOT_YET = "no verdict yet"


class Recorder:
    """Keeps verdicts as they come: in the log with all texts, in memory without them. drawn: texts that an earlier run
    has drawn of samples which have no verdict yet."""

    def __init__(self, listener: Listener, log: SampleLog | None, keys: Sequence[Key]) -> None:
        self._listener = listener
        self._log = log
        self._keys = keys
        self._lock = threading.Lock()
        earlier = self._read()
        self._finished = {key: _slim(r) for key, r in earlier.items() if r.verdict != "harness error"}
        self.drawn = {key: r.raw for key, r in earlier.items() if key not in self._finished and r.raw}
        self.tally = Tally(len(keys), Counter(record.verdict for record in self._finished.values()))

    def _read(self) -> dict[Key, SampleRecord]:
        if self._log is None:
            return {}
        contents = self._log.read()
        if contents.note:
            self._listener.note(contents.note)
        wanted = set(self._keys)
        return {(r.task_id, r.index): r for r in contents.records if (r.task_id, r.index) in wanted}

    def missing(self) -> list[Key]:
        """The samples that have no verdict yet."""
        return [key for key in self._keys if key not in self._finished]

    def finished(self) -> list[SampleRecord]:
        """The records in the order of their keys."""
        return [self._finished[key] for key in self._keys]

    def record(self, judged: Judged) -> None:
        """Take a verdict; of one that is not final only the text is kept, for a run that continues this one."""
        record = _record(judged)
        if self._log is not None:
            self._log.append(record)
        if not judged.is_final:
            return
        with self._lock:
            self._finished[record.task_id, record.index] = _slim(record)
            self.tally.verdicts[record.verdict] += 1
            self._listener.advance(self.tally)


def _record(judged: Judged) -> SampleRecord:
    candidate, judgement = judged.candidate, judged.judgement
    if not judged.is_final:
        judgement = Judgement("harness error", NOT_YET)
    answer = None if isinstance(candidate.answer, Judgement) else candidate.answer
    return SampleRecord(
        task_id=candidate.problem.task_id,
        index=candidate.index,
        seed=candidate.seed,
        raw=candidate.raw,
        completion=answer.text if answer is not None else "",
        whole=answer.whole if answer is not None else False,
        verdict=judgement.verdict,
        detail="\n".join(filter(None, [judgement.detail, candidate.note])),
        score=judgement.score,
        seconds=round(judged.seconds, 4),
    )


def _slim(record: SampleRecord) -> SampleRecord:
    return replace(record, raw="", completion="")
