"""The example of docs/training.md is code that runs, and does what it says."""

import re
from pathlib import Path
from typing import Any

import pytest

from codemill.train.batch import Batch
from codemill.train.policy import Policy
from train.conftest import make_model, make_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_a_new_objective_is_two_functions() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    batch, model = Batch.of(make_rows(12)), make_model()
    focal = names["Focal"]()
    totals = focal.counts([batch])
    loss = focal.loss(Policy(model), batch, totals)
    log_probs = model(batch.input_ids, position_ids=batch.position_ids, document_ids=batch.document_ids).log_softmax(-1)
    of_targets = log_probs[:, :-1].gather(2, batch.input_ids[:, 1:, None])[..., 0][batch.learned]
    expected = -((1 - of_targets.exp()) * of_targets).mean().item()
    assert loss.value.item() == pytest.approx(expected, rel=1e-5)
    assert loss.metrics == {"mean_log_prob": pytest.approx(of_targets.mean().item(), rel=1e-5)}
    loss.value.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
