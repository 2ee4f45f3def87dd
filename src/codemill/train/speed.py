"""How fast a step is for what it has to compute."""

import time

import torch

from codemill.config import ModelConfig
from codemill.footprint import count_active_parameters
from codemill.train.batch import Batch

_SIZE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed


class StepCost:
    """Floating-point operations of training steps, and the machine's speed in matrix products.

    Counted are those of the model's matrices and of attention: forward, and backward with the same for the gradient of
    the inputs and, unless `is_frozen`, of the weights. What recomputation repeats is not counted.
    """

    def __init__(self, config: ModelConfig, device: torch.device, precision: torch.dtype, is_frozen: bool) -> None:
        looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        self._per_token = (4 if is_frozen else 6) * (count_active_parameters(config) - looked_up)
        num_full = config.layer_types.count("full_attention")
        # Scores and outputs of each pair of tokens that see each other: forward once, backward twice.
        self._per_pair = num_full * 3 * 4 * config.num_attention_heads * config.head_dim
        self._device, self._precision = device, precision
        self._peak: float | None = None

    def operations(self, batch: Batch) -> float:
        positions = batch.position_ids[batch.document_ids >= 0]
        pairs = float((positions + 1).sum())  # a token sees those before it in its document, and itself
        return self._per_token * len(positions) + self._per_pair * pairs

    def utilisation(self, operations: float, seconds: float) -> float:
        """Share of the peak, MFU."""
        if self._peak is None:
            self._peak = matrix_product_speed(self._device, self._precision)
        return operations / seconds / self._peak


def matrix_product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the fastest of several."""
    size = _SIZE.get(device.type, 1024)
    a = torch.ones(size, size, dtype=dtype, device=device)
    return 2.0 * size**3 / min(_seconds(a) for _ in range(4))


def _seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    (a @ a)[0, 0].item()  # waits for the device
    return time.perf_counter() - start
