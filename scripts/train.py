"""Train a TraDe model with Seq2SeqTrainer, on data made on the fly or on a corpus folder.

Run: python scripts/train.py --config scripts/configs/cpu.yaml --online --output runs/cpu
     accelerate launch scripts/train.py --config scripts/configs/base.yaml --online --output runs/base
A run that was killed goes on from its last checkpoint when it is started again; one that is finished is left as it is.
A config with `minutes` in place of `max_steps` trains for that long in all; --call-minutes ends this call before, and
the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import training_record
import yaml
from clock import ENDLESS, Clock, spent_until
from muon import MuonWithAdamW, has_fast_bf16
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from training_log import TrainingLog, flops_per_example, matmul_peak
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_builder.online import Example, OnlineExamples, collate_examples, to_example
from dataset_builder.sampler import SamplerConfig
from dataset_builder.splits import LONG, pinned
from trade_hf.configuration_trade import TraDeConfig
from trade_hf.files import write_text
from trade_hf.modeling_trade import TraDeForConditionalGeneration
from trade_hf.processing_trade import TraDeProcessor
from trade_hf.tokenization_rasp import LINE_SIZE, MAX_LINES, PAD, VOCABULARY, build_tokenizer

PAD_ID = VOCABULARY.index(PAD)
ADDED = ("lines_before", "encoder")  # what of a config's model a warm start's checkpoint need not have had
SAME_SHAPE = 8  # units of a batch are a multiple of it where oneDNN prepares each shape of a product anew


@dataclass(frozen=True)
class Recipe:
    """What `training` of a config holds beside the arguments of the trainer.

    Attributes:
      minutes: of the whole run, in place of `max_steps` (see clock.py).
      fall: the last share of the minutes, in which the learning rate falls.
      muon_learning_rate: for the matrices of the layers (see muon.py); None: AdamW for all.
      reuse, long_share, wide_share, noisy_share, lossy_share: of data made on the fly (see `OnlineExamples`).
      validation_size, validation_long_size: programs; the long ones are of 11 to 15 lines.
    """

    minutes: float | None = None
    fall: float = 0.4
    muon_learning_rate: float | None = None
    reuse: int = 1
    long_share: float = 0.0
    wide_share: float = 0.0
    noisy_share: float = 0.0
    lossy_share: float = 0.0
    validation_size: int = 200
    validation_long_size: int = 0

    @classmethod
    def taken_from(cls, settings: dict[str, Any]) -> Recipe:
        """Takes its own out of a config's settings."""
        return cls(**{field.name: settings.pop(field.name) for field in fields(cls) if field.name in settings})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--online", action="store_true", help="make data on the fly")
    source.add_argument("--corpus", type=Path, help="a folder as scripts/build_dataset.py writes it")
    parser.add_argument("--corpus-config", help="its configuration; by default the smallest that is there")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--max-steps", type=int, help="in place of the config's steps or minutes")
    length.add_argument("--minutes", type=float, help="of the whole run, in place of the config's steps or minutes")
    parser.add_argument("--call-minutes", type=float, help="end this call with a checkpoint after so many")
    parser.add_argument("--warm-start", type=Path, help="begin with the weights of this checkpoint folder")
    args = parser.parse_args()
    if args.online and args.corpus_config:
        parser.error("--corpus-config goes with --corpus")
    if args.corpus and not args.corpus.is_dir():
        parser.error(f"{args.corpus}: expected a folder as scripts/build_dataset.py writes it")
    if args.warm_start and not (args.warm_start / "config.json").is_file():
        parser.error(f"{args.warm_start}: expected a checkpoint folder with config.json")
    config = yaml.safe_load(args.config.read_text())
    limits = {"max_steps": args.max_steps, "minutes": args.minutes}
    if given := {name: limit for name, limit in limits.items() if limit is not None}:
        config["training"] = {k: v for k, v in config["training"].items() if k not in limits} | given
    if "muon_learning_rate" in config["training"] and not hasattr(torch.optim, "Muon"):
        parser.error(f"{args.config}: muon_learning_rate takes torch 2.9 or newer, got {torch.__version__}")
    if args.call_minutes and "minutes" not in config["training"]:
        parser.error("--call-minutes: expected a config with minutes, or --minutes")
    train(config, args.output, args.corpus, args.corpus_config, args.call_minutes, args.warm_start)


def train(
    config: dict[str, Any],
    output: Path,
    corpus: Path | None,
    corpus_config: str | None,
    call_minutes: float | None,
    warm_start: Path | None,
) -> None:
    """One run, from the config to a saved model in `output`/final. A run that is finished stays as it is."""
    sampler = SamplerConfig.from_json(config.get("sampler", {}))
    settings = dict(config["training"])
    recipe, seed = Recipe.taken_from(settings), settings.get("seed", 0)
    if recipe.minutes is not None:
        settings["max_steps"] = ENDLESS
    checkpoint = last_complete_checkpoint(output)
    step = training_record.steps_of(Path(checkpoint)) if checkpoint else 0
    if corpus and config.get("model", {}).get("lines_before"):
        raise SystemExit("train: lines_before goes with --online: rows of a corpus begin at the first line")
    arguments = arguments_of(output, settings, ignore_data_skip=corpus is None)
    is_trained = checkpoint is not None and was_last(Path(checkpoint), arguments, recipe.minutes)
    is_saved = is_trained and is_final(output / "final", step)
    arguments.distributed_state.wait_for_everyone()  # all processes have looked before the first writes
    if is_saved:
        print(f"{output}: finished at step {step}, its model is in {output / 'final'}: nothing to do")
        return
    torch.manual_seed(seed)
    model = build_model(config.get("model", {}), Path(checkpoint) if is_trained else warm_start)
    is_bf16_on_cpu = arguments.bf16 and arguments.device.type == "cpu"
    if is_bf16_on_cpu:
        model.set_attn_implementation("eager")
    if corpus is None:
        fresh = stream_of(arguments, recipe, sampler, model.config, f"{seed}-{step}")
        data = made_online(fresh, recipe.validation_size, SAME_SHAPE if is_bf16_on_cpu else 1)
    else:
        data = from_corpus(corpus, corpus_config, recipe.validation_size, model.config.encoder)
    clock = None
    if recipe.minutes is not None:
        clock = Clock(recipe.minutes, arguments.device, call_minutes, checkpoint, recipe.fall)
    trainer = build_trainer(model, arguments, recipe, data, clock)
    if trainer.is_world_process_zero():
        data_source = {"corpus": f"{corpus} {corpus_config or ''}".strip()} if corpus else {"sampler": asdict(sampler)}
        made_with = {"config": config, **data_source, "warm_start": warm_start and record_of(warm_start)}
        training_record.begin(output, made_with, step, examples_per_step(arguments), arguments.device)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.2f} M parameters; from {checkpoint or warm_start or 'scratch'}")
    if is_trained:
        print(f"trained to its end, step {step}: its model is saved")
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        trainer.state.is_world_process_zero = trainer.is_world_process_zero()
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
        if clock and not clock.is_over:
            print(f"{clock.spent / 60:.1f} of {recipe.minutes:g} minutes: start it again to go on")
            return
    if not any("eval_loss" in row and row["step"] == trainer.state.global_step for row in trainer.state.log_history):
        trainer.evaluate()
    if trainer.is_world_process_zero():
        save_final(trainer, output / "final", training_record.record_at(output, trainer.state.global_step))


def build_trainer(
    model: TraDeForConditionalGeneration,
    arguments: Seq2SeqTrainingArguments,
    recipe: Recipe,
    data: dict[str, Any],
    clock: Clock | None,
) -> Seq2SeqTrainer:
    """A trainer of a model on `data`, with the recipe's optimiser, validation on long programs, and clock."""
    model.generation_config.max_new_tokens = None  # the arguments' generation_max_length is in force
    is_online = isinstance(data["train_dataset"], OnlineExamples)
    trainer = (OnlineTrainer if is_online else Seq2SeqTrainer)(
        model=model, args=arguments, **data, compute_metrics=exact_match
    )
    if is_online and recipe.validation_long_size:
        trainer.long_programs = held_out(recipe.validation_long_size, LONG, model.config.encoder)
    if recipe.muon_learning_rate is not None:
        trainer.optimizer = MuonWithAdamW(
            model, recipe.muon_learning_rate, arguments.learning_rate, arguments.weight_decay, arguments.adam_beta2
        )
    if clock:
        trainer.create_optimizer()
        trainer.lr_scheduler = LambdaLR(trainer.optimizer, clock.factor)
        trainer.add_callback(clock)
    trainer.add_callback(training_log(trainer, Path(arguments.output_dir) / "log.jsonl"))
    return trainer


def was_last(checkpoint: Path, arguments: Seq2SeqTrainingArguments, minutes: float | None) -> bool:
    """Whether a checkpoint is of the end of a run: after all of its minutes, its steps, or its epochs."""
    if minutes is not None:
        return spent_until(str(checkpoint)) >= 60 * minutes
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if arguments.max_steps > 0:
        return state.global_step >= arguments.max_steps
    return state.epoch >= arguments.num_train_epochs


def is_final(folder: Path, step: int) -> bool:
    """Whether a folder holds the whole model of a step."""
    return (folder / training_record.NAME).is_file() and training_record.steps_of(folder) == step


def record_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint that a run begins with was trained with; its path alone where that is not known."""
    record = checkpoint / training_record.NAME
    return json.loads(record.read_text()) if record.is_file() else {"path": str(checkpoint)}


def examples_per_step(arguments: Seq2SeqTrainingArguments) -> int:
    """Of all processes together."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def arguments_of(output: Path, settings: dict[str, Any], ignore_data_skip: bool) -> Seq2SeqTrainingArguments:
    """The trainer's arguments: a config's and what is the same in every run."""
    if settings.get("bf16") and settings.get("use_cpu") and not has_fast_bf16(torch.device("cpu")):
        print("bf16 is emulated on this processor, and slow: training in float32")
        settings = settings | {"bf16": False}
    return Seq2SeqTrainingArguments(
        output_dir=str(output),
        predict_with_generate=True,
        generation_max_length=LINE_SIZE * MAX_LINES + 2,
        remove_unused_columns=False,
        label_names=["labels"],
        ignore_data_skip=ignore_data_skip,
        accelerator_config={"dispatch_batches": False},
        report_to=[],
        **settings,
    )


def stream_of(
    arguments: Seq2SeqTrainingArguments, recipe: Recipe, sampler: SamplerConfig, model: TraDeConfig, drawn: str
) -> OnlineExamples:
    """This process's examples; `drawn` decides which, and the order of sizes, which all processes share."""
    own = f"{drawn}-{arguments.process_index}" if arguments.world_size > 1 else drawn
    return OnlineExamples(
        own,
        arguments.per_device_train_batch_size,
        recipe.reuse,
        sampler,
        encoder=model.encoder,
        lines_before=model.lines_before,
        long_share=recipe.long_share,
        order=drawn,
        wide_share=recipe.wide_share,
        noisy_share=recipe.noisy_share,
        lossy_share=recipe.lossy_share,
    )


def save_final(trainer: Seq2SeqTrainer, folder: Path, record: dict[str, Any]) -> None:
    """A checkpoint folder. What it was made with comes last, so that with it the folder is whole."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was shorter
    trainer.save_model(str(folder))
    TraDeProcessor(build_tokenizer()).save_pretrained(folder)
    write_text(folder / training_record.NAME, json.dumps(record, indent=2) + "\n")


def build_model(sizes: dict[str, Any], warm_start: Path | None) -> TraDeForConditionalGeneration:
    """A new model, or a checkpoint's in single precision: in bf16, as it ships, small steps would be rounded away."""
    if unknown := sizes.keys() - TraDeConfig().to_dict().keys():
        raise SystemExit(f"train: model: expected sizes of a TraDeConfig, got {', '.join(sorted(unknown))}")
    if warm_start is None:
        return TraDeForConditionalGeneration(TraDeConfig(vocab_size=len(VOCABULARY), **sizes))
    added = {name: sizes[name] for name in ADDED if name in sizes}
    model = TraDeForConditionalGeneration.from_pretrained(warm_start, dtype=torch.float32, **added)
    if others := {name: size for name, size in sizes.items() if getattr(model.config, name) != size}:
        raise SystemExit(f"train: {warm_start} is of another size than the config's model: {others}")
    return model


class OnlineTrainer(Seq2SeqTrainer):
    """Each process makes data of its own: none is made to be skipped by the others.

    What the network writes without a fault is not shown to it again.

    Attributes:
      long_programs: evaluated beside the validation set, as `eval_long_…`: programs longer than any in training.
    """

    long_programs: list[Example] | None = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        numbers, labels = inputs.pop("numbers", None), inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        if numbers is not None:
            right = ((outputs.logits.argmax(-1) == labels) | (labels == -100)).all(-1)
            self.train_dataset.known[numbers.cpu()] = right.cpu()
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        if self.long_programs:
            metrics |= super().evaluate(self.long_programs, ignore_keys, f"{metric_key_prefix}_long", **kwargs)
        return metrics

    def get_train_dataloader(self) -> DataLoader:
        assert self.train_dataset is not None
        workers, ahead = self.args.dataloader_num_workers, self.args.dataloader_prefetch_factor
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            pin_memory=self.args.device.type == "cuda",
        )


def training_log(trainer: Seq2SeqTrainer, path: Path) -> TrainingLog:
    """The log of a run, with its FLOPs counted on a few validation examples."""
    args, processes = trainer.args, trainer.args.world_size
    examples = [trainer.eval_dataset[i] for i in range(min(8, len(trainer.eval_dataset)))]
    batch = {name: tensor.to(args.device) for name, tensor in trainer.data_collator(examples).items()}
    flops = flops_per_example(trainer.model, batch)
    peak = matmul_peak(args.device, torch.bfloat16 if args.bf16 else torch.float32, processes)
    return TrainingLog(path, examples_per_step(args), flops, peak)


def made_online(fresh: OnlineExamples, validation_size: int, multiple: int) -> dict[str, Any]:
    """The trainer's data, sampled and compiled while it trains."""
    return {
        "train_dataset": fresh,
        "eval_dataset": held_out(validation_size, fresh.config, fresh.encoder),
        "data_collator": partial(collate_examples, multiple=multiple),
    }


def validate(model: TraDeForConditionalGeneration, config: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """A model's metrics on the validation programs of a run's config: `eval_loss`, `eval_free_running_exact`, …,
    `eval_long_loss`, …, and under `programs` how many they are. On the CPU."""
    recipe = Recipe.taken_from(dict(config["training"]))
    model.generation_config.max_new_tokens = None  # the arguments' generation_max_length is in force
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"use_cpu": True, "per_device_eval_batch_size": batch_size, "disable_tqdm": True}
        trainer = OnlineTrainer(
            model=model,
            args=arguments_of(Path(scratch), settings, ignore_data_skip=True),
            eval_dataset=held_out(
                recipe.validation_size, SamplerConfig.from_json(config.get("sampler", {})), model.config.encoder
            ),
            data_collator=collate_examples,
            compute_metrics=exact_match,
        )
        if recipe.validation_long_size:
            trainer.long_programs = held_out(recipe.validation_long_size, LONG, model.config.encoder)
        metrics = trainer.evaluate()
    sizes = {"eval": recipe.validation_size, "eval_long": recipe.validation_long_size}
    kept = {name: value for name, value in metrics.items() if name.endswith(("_loss", "_exact"))}
    return {"programs": {kind: size for kind, size in sizes.items() if size}, **kept}


def held_out(size: int, sampler: SamplerConfig, encoder: str) -> list[Example]:
    """Validation programs, of whatever lengths the sampler makes."""
    return [to_example(item.sample, encoder) for item in pinned("validation", size, sampler)]


def from_corpus(folder: Path, name: str | None, validation_size: int, encoder: str) -> dict[str, Any]:
    """The trainer's data, read from a corpus on disk."""
    import datasets

    from dataset_builder.collator import DataCollator

    train, validation = datasets.load_dataset(str(folder), name, split=["train", "validation"])
    return {
        "train_dataset": train,
        "eval_dataset": validation.select(range(min(validation_size, len(validation)))),
        "data_collator": DataCollator(encoder),
    }


def last_complete_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that was written to its end. Trainer writes `trainer_state.json` last, so a kill in the
    middle of a save leaves a folder without a readable one, which is passed over."""
    for folder in sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if any(folder.glob("model*.safetensors")):
            return str(folder)
    return None


def exact_match(predictions: Any) -> dict[str, float]:
    """`free_running_exact` on the validation set, from the tokens that `generate` gave; `structure_exact`: the same of
    operations and arguments alone."""
    exact, structure = [], []
    for row, label in zip(predictions.predictions, predictions.label_ids, strict=True):
        truth = label[label > PAD_ID]  # the trainer pads with it, beyond what is padded with -100
        written = row[1 : 1 + len(truth)]
        right = np.pad(written, (0, len(truth) - len(written)), constant_values=-1) == truth
        exact.append(right.all())
        structure.append(right[np.arange(len(right)) % LINE_SIZE != LINE_SIZE - 1].all())
    return {"free_running_exact": float(np.mean(exact)), "structure_exact": float(np.mean(structure))}


if __name__ == "__main__":
    main()
