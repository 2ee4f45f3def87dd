"""Loads a model: a spec in, a network with its weights out."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from codemill.config import ModelConfig, QuantizationConfig
from codemill.errors import CodemillError, UsageError
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import packed_tensors
from codemill.models.checkpoint import INDEX_FILE, Checkpoint, MappedFiles
from codemill.models.decoder import CausalLM
from codemill.models.gguf_checkpoint import GgufCheckpoint
from codemill.models.gguf_repack import GgufRepacker, describe
from codemill.models.initialize import initialize
from codemill.models.mtp import MtpHead
from codemill.models.names import is_ignored, is_mtp
from codemill.models.placement import (
    check_mapped,
    check_memory,
    dtype_name,
    expected_mapped_bytes,
    fits_mapped,
    resolve_device,
    resolve_dtype,
    resolve_quantization,
)
from codemill.models.progress import progress
from codemill.models.quantize import CheckpointQuantizer, Quantizer, stored_formats
from codemill.models.quantized import empty_like, matrices, named_weights, pack_modules
from codemill.models.read_ahead import read_ahead
from codemill.models.safetensors_file import ALIGNMENT
from codemill.models.skeleton import build, build_mtp, empty, materialize, set_parameter
from codemill.spec import CONFIG_FILES, ModelSource, resolve

WEIGHT_FILES = (INDEX_FILE, "model*.safetensors")


def load_model(
    spec: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    *,
    quantization: str | QuantizationConfig | None = None,
    trainable: bool = False,
    seed: int = 0,
) -> CausalLM:
    """The model that `spec` names, in eval mode; its parameters require gradients only if `trainable`.

    spec: None (the embedded model), a directory, a .gguf file, a hub id or random:PRESET, whose weights `seed`
    determines. dtype: None or "auto" for the checkpoint's own, bfloat16 where a GGUF file is quantised. Weights that
    are already of that dtype are used on the CPU as they lie on disk, mapped privately and without a copy; training
    such a model does not write to the file.

    quantization: "int4", "int8" or a longer form (see `QuantizationConfig`) packs the matrices while they are loaded,
    one by one. A directory from `codemill quantize` is quantised without being asked, and mapped as it is. Quantised
    tensors of a GGUF file stay so on the CPU, in the packed formats that hold them (see `gguf_packed.py`); "none"
    dequantises them, and so do `trainable` and other devices.

    Of such a directory that is larger than memory, experts are read from disk as they are needed (docs/big_models.md).

    Raises UsageError for a spec, dtype, device or quantization that is none, or a quantised model that is to be
    trained; CodemillError for everything that is wrong with the checkpoint, or if the weights do not fit in memory;
    both before memory is allocated.
    """
    target = resolve_device(device)
    source = resolve(spec)
    config = read_config(source)
    wanted, packed = resolve_dtype(dtype, config), resolve_quantization(quantization, config.quantization)
    if packed is not None and trainable:
        raise UsageError(f"{source.name}: a quantised model cannot be trained: load it without quantization")
    is_kept = quantization is None and source.gguf is not None and target.type == "cpu" and not trainable
    mapped = config.quantization if target.type == "cpu" else None
    if mapped is not None:
        check_mapped(source.name, config, *expected_mapped_bytes(config, wanted, mapped))
    elif not is_kept:
        check_memory(source.name, config, wanted, target, packed)
    model = build(replace(config, quantization=packed), wanted)
    if source.kind == "random":
        if packed is not None:
            pack_modules(model, packed.format_of)
        materialize(model, target)
        initialize(model, seed)
        return model.requires_grad_(trainable)
    if source.gguf is not None:
        repacker = _pack_gguf(model, GgufCheckpoint(source.gguf, config), packed, is_kept)
        if is_kept:
            num_bytes = sum(weight.nbytes for weight in named_weights(model).values())
            check_memory(source.name, config, wanted, target, model.config.quantization, num_bytes)
        _load_weights(model, repacker.checkpoint, target, repacker)
        return model.requires_grad_(trainable)
    checkpoint = open_checkpoint(source, config).select(lambda name: not is_ignored(name, config))
    if config.quantization is not None:
        pack_modules(model, stored_formats(matrices(model), checkpoint, config.quantization).get)
    checkpoint.check(model, config)
    fits = mapped is None or _fits(source.name, checkpoint, config)
    model.experts_on_disk = not fits and config.moe is not None
    quantizer: Quantizer | None = None
    if packed is not None and config.quantization is None:
        quantizer = CheckpointQuantizer(checkpoint)
        pack_modules(model, packed.format_of)
    _load_weights(model, checkpoint, target, quantizer)
    if mapped is not None:
        read_ahead([weight for name, weight in model.named_parameters() if fits or ".experts." not in name])
    return model.requires_grad_(trainable)


def _fits(name: str, checkpoint: Checkpoint, config: ModelConfig) -> bool:
    """Whether mapped weights fit as a whole. Raises CodemillError if experts on disk would not help either."""
    sizes = {name: tensor.end - tensor.begin for name, tensor in checkpoint.tensors.items()}
    total, experts = sum(sizes.values()), sum(size for name, size in sizes.items() if ".experts." in name)
    check_mapped(name, config, total, experts)
    fits = fits_mapped(name, config, total)
    if not fits:
        _check_mappable(checkpoint)
    return fits


def _pack_gguf(
    model: CausalLM, checkpoint: GgufCheckpoint, packed: QuantizationConfig | None, is_kept: bool
) -> GgufRepacker:
    """Check the file, and put packed matrices in place: of the format `packed`, or those of the file if `is_kept`."""
    checkpoint.check(model)
    repacker = GgufRepacker(checkpoint, model)
    if is_kept:
        model.config = replace(model.config, quantization=describe(repacker.kept, matrices(model)))
        pack_modules(model, repacker.kept.get)
    elif packed is not None:
        pack_modules(model, packed.format_of)
    return repacker


def load_mtp(
    spec: str | Path | None,
    model: CausalLM,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    trainable: bool = False,
    seed: int = 0,
) -> MtpHead | None:
    """The multi-token prediction head that comes with `model` in the checkpoint `spec`; None where there is none.

    dtype and device: those of `model` unless given. A random: spec of a hybrid model always has a head, whose weights
    `seed` determines. Only published checkpoints and our own have one: `transformers` drops it when it saves.

    Raises as `load_model` does, and CodemillError if tensors of the head are missing or not of the model's shape.
    """
    source = resolve(spec)
    target, wanted = resolve_device(device or model.device), resolve_dtype(dtype or model.dtype, model.config)
    if not model.config.is_hybrid or source.kind == "gguf":
        return None
    head = build_mtp(model.config, wanted)
    if source.kind == "random":
        materialize(head, target)
        initialize(cast(CausalLM, head), seed)
    else:
        checkpoint = open_checkpoint(source, ModelConfig.load(source.fetch(CONFIG_FILES))).select(is_mtp)
        if not checkpoint.tensors:
            return None
        on_disk = nn.ModuleDict({"mtp": head})  # gives the parameters their names on disk
        checkpoint.check(on_disk, model.config)
        _load_weights(on_disk, checkpoint, target)
    return head.requires_grad_(trainable)


def read_config(source: ModelSource) -> ModelConfig:
    """The configuration, with the dtype of the weights. Raises CodemillError."""
    # Before the weights, which may take an hour to arrive for a model that cannot be loaded.
    config = source.load_config()
    if config.dtype is not None or source.preset is not None:
        return config
    return replace(config, dtype=_stored_dtype(open_checkpoint(source, config)))


def open_checkpoint(source: ModelSource, config: ModelConfig) -> Checkpoint:
    """The weights in safetensors files, downloaded if need be. Raises CodemillError."""
    return Checkpoint.open(source.fetch((*CONFIG_FILES, *WEIGHT_FILES)), config.fp8)


def _stored_dtype(checkpoint: Checkpoint) -> str | None:
    """The dtype of weights whose `config.json` names none; the embedding is the one tensor that is never quantised."""
    embedding = checkpoint.tensors.get("model.embed_tokens.weight")
    return None if embedding is None else dtype_name(embedding.dtype)


def _load_weights(
    model: nn.Module,
    checkpoint: Checkpoint | GgufCheckpoint,
    device: torch.device,
    quantizer: Quantizer | None = None,
) -> None:
    """Replace the meta parameters one by one, so that no more than one tensor exists twice at any time."""
    weights = named_weights(model) if quantizer is not None else dict(model.named_parameters())
    mapped = MappedFiles()
    with progress("loading weights", sum(weight.nbytes for weight in weights.values())) as advance:
        for name, weight in weights.items():
            if isinstance(weight, PackedMatrix):
                assert quantizer is not None
                matrix = empty_like(weight, device)
                quantizer.fill(name, matrix)
                for key, tensor in packed_tensors(name, matrix).items():
                    set_parameter(model, key, tensor)
            else:
                set_parameter(model, name, _read_parameter(name, weight, checkpoint, mapped, device))
            advance(weight.nbytes)


def _check_mappable(checkpoint: Checkpoint) -> None:
    """Tensors that are not aligned would be copied to memory that is not there. Raises CodemillError."""
    for name, stored in checkpoint.tensors.items():
        if stored.dtype == torch.uint8 and stored.begin % ALIGNMENT:
            raise CodemillError(
                f"{stored.path}: tensor {name} is not at a multiple of {ALIGNMENT} bytes, so it cannot be used where "
                "it lies, and there is no memory for a copy: write the directory again with codemill quantize"
            )


def _read_parameter(
    name: str, meta: Tensor, checkpoint: Checkpoint | GgufCheckpoint, mapped: MappedFiles, device: torch.device
) -> Tensor:
    if isinstance(checkpoint, GgufCheckpoint):
        return checkpoint.read(name, meta, mapped, device)
    stored = checkpoint.tensors.get(name)
    if stored is not None and stored.dtype == meta.dtype and device.type == "cpu":
        return mapped.view(stored)
    parameter = empty(meta, device)
    for part, view in checkpoint.views(name, parameter):
        checkpoint.copy(part, view)
    return parameter
