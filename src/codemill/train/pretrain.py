"""Pre-training a small code model from nothing: tokenizer, packed data, and the loop over them."""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from codemill.chat.tokenizer_files import tokenizer_path
from codemill.config import ModelConfig
from codemill.data.bpe import save_tokenizer, train_tokenizer
from codemill.data.corpus import Module, split_modules, stdlib_modules
from codemill.data.fim import END_OF_TEXT
from codemill.data.mixture import IM_END, Mixture, build_documents
from codemill.data.packing import Document, PackedRows, pack
from codemill.data.synthesis import generate_tasks
from codemill.data.token_file import load_rows, save_rows
from codemill.errors import UsageError
from codemill.footprint import count_parameters
from codemill.models import CausalLM
from codemill.models.initialize import initialize
from codemill.models.loader import load_model
from codemill.train.config import DataSection, PretrainConfig
from codemill.train.export import save_whole
from codemill.train.loop import Trainer
from codemill.train.objective import CrossEntropy
from codemill.train.parallel_config import ParallelConfig
from codemill.train.policy import Policy
from codemill.train.run import RunPlan, TrainingRun
from codemill.train.source import PackedSource, validation_batches

_TOKENIZER_TASKS = 20_000
_VALIDATION_TASKS = 400


@dataclass(frozen=True)
class PretrainData:
    """What a run reads, and the tokenizer that made it."""

    tokenizer: Tokenizer
    train: PackedRows
    validation: dict[str, PackedRows]


class Pretraining(TrainingRun):
    """A run in `config.output`, with data/ (made once) beside the others and, at the end, model/."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.directory = Path(config.output)

    @property
    def parallel_config(self) -> ParallelConfig:
        return self.config.parallel

    @property
    def result(self) -> Path:
        return self.directory / "model"

    def plan(self) -> RunPlan:
        """The vocabulary is taken to be as large as it may become."""
        config, loop = self.config, self.config.loop
        shape = config.model.build(config.data.vocab_size)
        parameters = count_parameters(shape)
        self.check_parallel(shape, loop)
        memory = self.memory_of(
            shape, 4 * parameters, parameters, loop.rows_per_micro_batch * config.data.context, loop
        )
        return RunPlan(
            *(loop.steps, loop.rows_per_step, config.data.context, parameters, parameters, memory),
            processes=self.parallel_config.num_processes,
        )

    def start(self) -> Trainer:
        self.check_parallel(self.config.model.build(self.config.data.vocab_size), self.config.loop)
        with self.parallel.main_first():
            data = self.prepare()
        model = self.build_model(data.tokenizer)
        loop = self.config.loop.for_rows(len(data.train))
        validation = {name: validation_batches(rows, loop) for name, rows in data.validation.items()}
        return Trainer(
            *(
                self.placed(Policy(model)),
                CrossEntropy(),
                PackedSource(data.train, loop, *self.parallel.share_of_rows),
                validation,
            ),
            *(loop, self.config.optimizer, self.directory),
            parallel=self.parallel,
        )

    def save(self, policy: Policy) -> None:
        """In bf16, with the tokenizer beside it."""
        tokenizer = Tokenizer.from_file(str(self.directory / "data" / "tokenizer" / "tokenizer.json"))
        save_whole(policy.model, self.result, torch.bfloat16, self.parallel)
        if self.parallel.is_main:
            save_companions(tokenizer, policy.model.config, self.result)

    def prepare(self) -> PretrainData:
        """Make the tokenizer and the packed rows, or load them where the same settings made them before.

        Raises UsageError if a run on other data has checkpoints here: its weights mean other tokens.
        """
        directory = self.directory / "data"
        fingerprint = directory / "fingerprint"
        expected = _fingerprint(self.config)
        if not fingerprint.exists() or fingerprint.read_text() != expected:
            if fingerprint.exists() and any((self.directory / "checkpoints").glob("step-*")):
                raise UsageError(f"{self.directory} holds a run on other data: give another output, or delete that one")
            fingerprint.unlink(missing_ok=True)  # nothing vouches for files that are half written
            _write_data(self.config, directory)
            fingerprint.write_text(expected)
        rows = {name: load_rows(directory / f"{name}.npy") for name in ("train", "modules", "tasks")}
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
        return PretrainData(tokenizer, rows.pop("train"), rows)

    def build_model(self, tokenizer: Tokenizer) -> CausalLM:
        """The model to train, in fp32: that of `init_from`, or a fresh one, the same for the same seed.

        Raises UsageError if the model of `init_from` has another shape than `[model]` says.
        """
        shape = self.config.model.build(tokenizer.get_vocab_size())
        if self.config.init_from:
            model = load_model(self.config.init_from, "float32", trainable=True)
            _check_shape(self.config.init_from, model.config, shape)
            return model
        shape = replace(
            shape,
            dtype="float32",
            eos_token_id=tokenizer.token_to_id(IM_END),
            pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
        )
        model = CausalLM(shape)
        initialize(model, self.config.loop.seed)
        return model


def save_companions(tokenizer: Tokenizer, config: ModelConfig, directory: Path) -> None:
    """Write tokenizer and generation defaults beside a model's weights, where `transformers` and we find them."""
    save_tokenizer(tokenizer, directory, model_max_length=config.max_position_embeddings)
    stops = [tokenizer.token_to_id(token) for token in (IM_END, END_OF_TEXT)]
    generation = {"do_sample": False, "eos_token_id": stops, "pad_token_id": stops[1]}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def held_out_modules(data: DataSection) -> list[Module]:
    """The library modules that no training row contains."""
    return split_modules(stdlib_modules(), data.held_out_fraction)[1]


def _check_shape(name: str, found: ModelConfig, wanted: ModelConfig) -> None:
    described = ("dtype", "bos_token_id", "eos_token_id", "pad_token_id")  # of the files, not of the shape
    for key, value in vars(wanted).items():
        if key not in described and getattr(found, key) != value:
            raise UsageError(f"[model] says {key} = {value}, but the model in {name} has {getattr(found, key)}")


def _fingerprint(config: PretrainConfig) -> str:
    names = [module.name for module in stdlib_modules()]
    settings = [asdict(config.data), config.loop.seed, config.init_from, names]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _write_data(config: PretrainConfig, directory: Path) -> None:
    data, seed = config.data, config.loop.seed
    modules, held_out = split_modules(stdlib_modules(), data.held_out_fraction)
    if config.init_from:
        tokenizer = Tokenizer.from_file(str(tokenizer_path(config.init_from)))
    else:
        tokenizer = _train_tokenizer(data, modules, seed)
    save_tokenizer(tokenizer, directory / "tokenizer", model_max_length=data.context)
    mixture = replace(data.mixture, capacity=data.context)
    held_out_tasks = itertools.islice(generate_tasks(seed, held_out=True), _VALIDATION_TASKS)
    plain = replace(mixture, module_fim=0.0, task_fim=0.0, task_chat=0.0, prompt_weight=0.0)
    documents = {
        "train": _training_documents(data, tokenizer, modules, seed, mixture),
        "modules": build_documents(tokenizer, held_out, [], seed, plain),
        "tasks": build_documents(tokenizer, [], held_out_tasks, seed, plain),
    }
    pad_id = tokenizer.token_to_id(END_OF_TEXT)
    assert pad_id is not None
    for name, members in documents.items():
        save_rows(pack(members, data.context, pad_id), directory / f"{name}.npy")


def _train_tokenizer(data: DataSection, modules: list[Module], seed: int) -> Tokenizer:
    tasks = itertools.islice(generate_tasks(seed), _TOKENIZER_TASKS)
    texts = itertools.chain(
        (module.text for module in modules),
        (text for task in tasks for text in (task.prompt + task.solution, task.instruction)),
    )
    return train_tokenizer(texts, data.vocab_size)


def _training_documents(
    data: DataSection, tokenizer: Tokenizer, modules: list[Module], seed: int, mixture: Mixture
) -> list[Document]:
    documents = build_documents(tokenizer, [], itertools.islice(generate_tasks(seed), data.tasks), seed, mixture)
    for number in range(data.library_passes):  # another seed cuts other holes
        documents += build_documents(tokenizer, modules, [], seed + number, mixture)
    return documents
