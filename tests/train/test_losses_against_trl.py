"""Our losses against TRL's own code on the same tensors and, once, on the same model and pairs."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from codemill.data.conversations import PreferencePair
from codemill.data.packed_pairs import PackedPairs
from codemill.data.packing import Document
from codemill.train.dpo import Preference
from codemill.train.dpo_config import DpoSection
from codemill.train.losses import Clip, forward_kl, jensen_shannon, policy_gradient, reverse_kl, truncated_ratio
from codemill.train.pair_batches import PairBatch, answer_log_probs
from codemill.train.policy import Policy
from codemill.train.preference import ipo_losses, sigmoid_losses, simpo_losses
from models.reference import make_ours, make_reference

trl = pytest.importorskip("trl")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    sync_gradients=True,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo"])
def test_losses_of_pairs(loss: str, smoothing: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    chosen, rejected, beta, gamma = 2 * randn(20), 2 * randn(20, seed=1), 0.3, 0.7
    theirs = SimpleNamespace(
        alpha=0.0, beta=beta, loss_type=loss, simpo_gamma=gamma, label_smoothing=smoothing, accelerator=ACCELERATOR
    )
    expected, *_ = CPOTrainer.cpo_loss(theirs, chosen, rejected)  # DPO's, as the reference's part is subtracted before
    ours = {
        "sigmoid": lambda: sigmoid_losses(chosen, rejected, beta, smoothing),
        "ipo": lambda: ipo_losses(chosen, rejected, beta),
        "simpo": lambda: simpo_losses(chosen, rejected, beta, gamma, smoothing),
    }[loss]()
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("beta", "ours"), [(0.0, forward_kl), (1.0, reverse_kl), (0.3, None)])
def test_divergences(beta: float, ours: Any) -> None:
    from trl.experimental.gkd import GKDTrainer

    student, teacher = randn(2, 5, 11), randn(2, 5, 11, seed=1)
    expected = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="sum")
    values = jensen_shannon(student, teacher, beta) if ours is None else ours(student, teacher)
    torch.testing.assert_close(values.sum(), expected)


CLIPS = {
    "ppo": (Clip(0.2, 0.2), {"loss_type": "dapo"}),
    "clip high": (Clip(0.2, 0.28), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (Clip(0.01, 0.02, sequence=True), {"importance_sampling_level": "sequence", "epsilon_low": 0.01}),
    "cispo": (Clip(1.0, 0.3, hard=False), {"loss_type": "cispo", "epsilon_high": 1.3}),
}
CLIPS["gspo"][1]["epsilon_high"] = 0.02


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", CLIPS)
def test_policy_gradients(name: str, corrected: bool) -> None:
    clip, changes = CLIPS[name]
    rows, tokens = 4, 9
    log_probs = (randn(rows, tokens) - 3).requires_grad_()
    old, sampler = log_probs.detach() + 0.3 * randn(rows, tokens, seed=1), -3 + randn(rows, tokens, seed=2)
    mask = (randn(rows, tokens, seed=3) > -0.5).float()
    advantages = randn(rows, seed=4)
    correction = truncated_ratio(old, sampler, 2.0)
    settings = {"loss_type": "dapo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2}
    theirs = SimpleNamespace(
        **{**settings, **changes},
        **dict.fromkeys(("aux_loss_enabled", "_entropy_bonus_enabled"), False),
        **dict.fromkeys(("beta", "off_policy_mask_threshold"), None),
        top_entropy_quantile=1.0,
        use_vllm=corrected,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros(rows, tokens), None),
    )
    theirs.beta = 0.0
    empty = torch.zeros(rows, 0, dtype=torch.long)
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": mask.long(),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "importance_sampling_ratio": correction,
        "num_items_in_batch": mask.sum(),
    }
    expected = trl.GRPOTrainer._compute_loss(theirs, None, inputs)
    ours = policy_gradient(
        log_probs.flatten(),
        old.flatten(),
        advantages[:, None].expand(rows, tokens).flatten(),
        mask.flatten(),
        clip,
        torch.arange(rows).repeat_interleave(tokens),
        correction.flatten() if corrected else None,
    )
    value = ours.value / mask.sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, log_probs), torch.autograd.grad(expected, log_probs))
    if name == "ppo":
        clipped = theirs._metrics["train"]["clip_ratio/region_mean"][0]
        assert (ours.clipped / mask.sum()).item() == pytest.approx(clipped)


PAIRS = [([5, 9, 3], [7, 2], [8, 8, 8, 1]), ([4, 4], [6, 1, 30, 2], [11]), ([50], [60, 61, 62], [63, 64])]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_same_model_and_pairs_give_the_same_loss(loss: str) -> None:
    """TRL's collator, models and loss, with a cross entropy of the chosen answers beside it."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.utils import add_fused_lm_head

    models = [make_reference("qwen3", seed=seed) for seed in (0, 1)]
    policy, reference = (Policy(make_ours(model)) for model in models)
    for model in models:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    theirs = SimpleNamespace(
        model=models[0].train(),
        ref_model=models[1],
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        **dict.fromkeys(("aux_loss_enabled", "precompute_ref_logps", "use_weighting"), False),
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss, "sft"],
        loss_weights=[1.0, 0.25],
        beta=0.2,
        accelerator=ACCELERATOR,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    examples = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), each, strict=True)) for each in PAIRS]
    with mock.patch("trl.trainer.dpo_trainer.is_peft_model", return_value=False):
        batch = DataCollatorForPreference(pad_token_id=0)(examples)
        expected = trl.DPOTrainer._compute_loss(theirs, models[0], batch, False)

    def document(prompt: list[int], answer: list[int]) -> Document:
        return Document.of(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))

    pairs = [PreferencePair(document(p, chosen), document(p, rejected)) for p, chosen, rejected in PAIRS]
    packed = PackedPairs(pairs, 32, 0)
    rows = packed.take(range(len(packed)))
    known = np.zeros((3, 2), np.float32)
    with torch.no_grad():
        known[rows.pairs] = answer_log_probs(reference, PairBatch.of_pairs(rows, None))[0]
    policy.requires_grad_(True)
    objective, ours = Preference(DpoSection(loss=loss, beta=0.2, sft_weight=0.25)), PairBatch.of_pairs(rows, known)
    part = objective.loss(policy, ours, objective.counts([ours]))
    assert part.value.item() == pytest.approx(expected.item(), rel=1e-5)
    logged = {name: values[0] for name, values in theirs._metrics["train"].items()}
    names = {"reward_chosen": "chosen", "reward_rejected": "rejected", "reward_margin": "margins"}
    for name, their_name in {**names, "reward_accuracy": "accuracies"}.items():
        assert part.metrics[name] == pytest.approx(logged[f"rewards/{their_name}"], rel=1e-4)
    part.value.backward()
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in policy.model.named_parameters()}
    assert gradients.keys() == dict(models[0].named_parameters()).keys()
    for name, parameter in models[0].named_parameters():
        largest = parameter.grad.abs().max().item()
        assert largest > 0
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4 * largest, msg=name)
