"""Engines that take turns: each with the setting that suits it best, and each free to fail without the others."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from codemill.bench.engines import OURS, Timing
from codemill.bench.figures import Contestant, best_setting
from codemill.bench.process import EngineFailure, Worker
from codemill.bench.workload import Measurement, Workload
from codemill.errors import CodemillError

_SHORT = 64  # tokens of a prompt that only wakes an engine up; what is timed afterwards is run in full length before
Note = Callable[[str], None]


class Turns:
    """Runs a workload in engines that are loaded side by side. What goes wrong in a peer is kept as its failure."""

    def __init__(
        self, workers: dict[str, Worker], contestants: Mapping[str, Contestant], workload: Workload, note: Note
    ) -> None:
        self._workers, self._contestants, self._workload, self._note = workers, contestants, workload, note

    def warm_up(self) -> None:
        """Runs that do not count. An engine that has several settings shows in them which suits it best."""
        for name in list(self._workers):
            trials = {trial: self._try_settings(name, trial) for trial in self._workload.trials()}
            for measurement in self._workload.measurements():
                found = next(timings for trial, timings in trials.items() if trial.batch == measurement.batch)
                if found:
                    self._contestants[name].settings[measurement] = best_setting(measurement, found)
            self._forget_peak(name)

    def _forget_peak(self, name: str) -> None:
        """Settings that are not used, and loading, may take more memory."""
        if name not in self._workers:
            return
        try:
            self._workers[name].forget_peak()
        except EngineFailure as error:
            if name == OURS:
                raise
            self._contestants[name].failures.append(str(error))
            self._revive(name, self._workers[name])

    def _try_settings(self, name: str, trial: Measurement) -> dict[str, Timing]:
        """How long each setting takes; where there is only one, a short run is enough."""
        settings = self._workers[name].settings if name in self._workers else []
        found = {}
        for setting in settings:
            self._note(f"warming up {name} ({setting}): {trial}")
            size = trial.num_prompt if len(settings) > 1 else min(trial.num_prompt, _SHORT)
            first = replace(trial, num_prompt=size, num_new=min(trial.num_new, 2))
            timing = self._run(name, first, 0, setting)
            if timing is not None and len(settings) > 1:
                timing = self._run(name, trial, 1, setting)
            if timing is not None:
                found[setting] = timing
        return found

    def run_round(self, number: int) -> None:
        """Each run of the workload once in each engine. Prompts differ from round to round."""
        for measurement in self._workload.measurements():
            self._note(f"round {number}: {measurement}")
            for name in list(self._workers):
                self._take_turn(name, measurement, 1 + number)

    def _take_turn(self, name: str, measurement: Measurement, seed: int) -> None:
        contestant = self._contestants[name]
        if measurement not in contestant.settings:
            return
        timing = self._run(name, measurement, seed, contestant.settings[measurement])
        if timing is None:
            del contestant.settings[measurement]
            contestant.timings.pop(measurement, None)
            return
        contestant.timings.setdefault(measurement, []).append(timing)
        if name in self._workers:
            contestant.run_peak = max(contestant.run_peak, self._workers[name].peak_memory)

    def _run(self, name: str, measurement: Measurement, seed: int, setting: str) -> Timing | None:
        """None where a peer failed; then it is started again if need be, and left out if it does not start."""
        worker = self._workers.get(name)
        if worker is None:
            return None
        try:
            return worker.measure(measurement, seed, setting)
        except EngineFailure as error:
            if name == OURS:
                raise
            self._contestants[name].failures.append(f"{measurement} ({setting}): {error}")
        if worker.has_ended:
            self._revive(name, worker)
        return None

    def _revive(self, name: str, worker: Worker) -> None:
        self._note(f"loading {name} again")
        worker.close()
        try:
            worker.start()
        except CodemillError as error:
            self._contestants[name].failures.append(str(error))
            del self._workers[name]
