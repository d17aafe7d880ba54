"""The stage `train`: from a token set to a checkpoint. Thin: it gathers what `loop` computes with, and writes what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core import processes
from chattune.core.progress import Progress, talk
from chattune.core.record import Record, Unrecorded
from chattune.core.stage import STATE, keep_summary, question_of, stage, versions
from chattune.models.checkpoint import Checkpoint
from chattune.models.families import Family
from chattune.models.families.gpt import GPT
from chattune.tokens.token_set import TokenSet
from chattune.train.config import TrainConfig

if TYPE_CHECKING:
    from chattune.evaluate.loss import SplitLoss
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.order import Order
    from chattune.tokens.token_set import TokenSplit
    from chattune.train.budget import Budget
    from chattune.train.device import Choice
    from chattune.train.division import Alone
    from chattune.train.loop import Training
    from chattune.train.state import Snapshot, Snapshots
    from chattune.train.world import World

ALLOW_CHANGES = "allow-changes"  # a file of this name in state/ lets one resume pass over changed versions


@stage(together=True)
def train(
    *,
    config: TrainConfig,
    model: Family = GPT(),  # noqa: B008 - settings are frozen
    seed: int = 0,
    tokens: TokenSet,
    start: Checkpoint | None = None,
    out: Path,
) -> Checkpoint:
    """Train `model` on the training split of `tokens`, from fresh weights or from those of `start`; resumes what `out` holds."""
    if config.processes > 1 and not processes.launched():
        from chattune.train.launch import launch

        launch(out, config.processes)
        return Checkpoint(out)
    import torch

    from chattune.train import device as computing
    from chattune.train import interrupt, loop, state, world

    torch.set_num_threads(config.threads or max(1, len(_cores()) // processes.beside()))
    us = world.World.join()
    where = computing.pick_device()
    torch.use_deterministic_algorithms(where == "cpu")  # the promise of equal bits is for processors; CUDA lacks some of these kernels
    master = _fresh(model, tokens, seed, start).to(where)
    for method in config.regularizers:
        method.edit(master)
    order = _order(config, model, tokens, seed)
    folder = out / STATE
    folder.mkdir(exist_ok=True)
    snapshots = state.Snapshots(
        folder, config.keep_last, configuration=question_of(out)["config"], data=tokens.digest, versions=versions(),
        on_save_error=config.on_save_error,
    )
    snapshot = _newest(snapshots, us, folder / ALLOW_CHANGES)
    budget = _budget(config, order.batches_per_epoch)
    choice, why = _choice(snapshot, master, order, config, budget, us)
    together = f", {us.size} processes ({config.parallel})" if us.size > 1 else ""
    talk().print(f"computing on {choice}{together}  ({why})", markup=False)
    division = _divided(config, master, choice, us)
    worker = division.worker
    training = loop.Training(config, division, order, budget, seed, device=where)
    training.state.choice = {"precision": choice.precision, "compile": choice.compile}
    record, samples = (Record(out / name) if us.first else Unrecorded() for name in ("metrics.jsonl", "samples.jsonl"))
    if snapshot is not None:
        training.restore(snapshot)
        talk().print(f"resuming after step {snapshot.step}", markup=False)
    record.rewind(training.state.step)
    samples.rewind(training.state.step)
    if choice.compile:
        worker.model.hidden = computing.compiled(worker.model)  # type: ignore[method-assign]
    worker.model.train()

    answers = _Answers(training, tokens, config, seed, samples)
    if snapshot is None:
        answers("before")
    bar = Progress("train", budget.total(0, 0.0), start=training.state.step)
    bar.open()
    try:
        with interrupt.listening() as asked:
            look = _Look(tokens, model.context_length(), config, world.World() if division.lockstep else us)
            around = loop.Surroundings(record, snapshots, asked, bar, out.name, look, lambda: answers("half-way"))
            reason = loop.fit(training, around)
    finally:
        bar.close()
    _finish(training, tokens, out, answers, choice, reason)
    return Checkpoint(out)


def _finish(training: Training, tokens: TokenSet, out: Path, answers: _Answers, choice: Choice, reason: str) -> None:
    """Answer the prompts once more with the weights to keep, write the Hugging Face directory and the summary."""
    from chattune.models.checkpoint import save_model
    from chattune.train.device import peak_memory

    state, model = training.state, training.kept()
    if model is None:
        return  # the first process writes
    model.after_training(training.order.epoch_of_batches)
    answers("after", model.eval())
    kept = state.best or {"step": state.step, "loss": state.history[-1]["loss"]}
    save_model(model.float().cpu(), tokens.path, out, _card(training, choice, kept))
    keep_summary(
        out,
        {
            "parameters": sum(p.numel() for p in training.parameters), "steps": state.step, "tokens": state.tokens,
            "train_seconds": round(state.seconds, 1), "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9)),
            "validation_loss": kept["loss"], "kept_step": kept["step"], "stopped": reason, "computed": str(choice),
            "memory_bytes": peak_memory(),
        },
    )  # fmt: skip


def _card(training: Training, choice: Choice, kept: dict[str, Any]) -> str:
    """The model card: what was trained on what, for how long, and how to talk to it."""
    state, model = training.state, training.worker.master
    sizes = ", ".join(f"{key} {value}" for key, value in model.family.dump().items() if key != "name" and value is not None)
    return (
        f"# A chat model of the {model.family.name} family\n\n"
        f"{sum(p.numel() for p in training.parameters):,} parameters ({sizes}), trained by chattune for {state.step:,} updates on "
        f"{state.tokens:,} tokens ({choice}).\nValidation loss {kept['loss']:.4f} nats a token at step {kept['step']}.\n\n"
        "Talk to it with `chattune chat`, or load the directory with `transformers.AutoModelForCausalLM` and its chat template.\n"
    )


class _Look:
    """One look at the model: validation loss and bits per byte, and the loss on a fixed part of the training split.

    The dialogs are divided over the processes of `world`.
    """

    def __init__(self, tokens: TokenSet, context: int, config: TrainConfig, world: World) -> None:
        self.context, self.config, self.world, self.lengths = context, config, world, tokens.tokenizer.byte_lengths
        self.validation, self.train = tokens.split("validation"), tokens.split("train")

    def __call__(self, model: LanguageModel) -> dict[str, Any]:
        seen = self._score(model, self.validation, self.config.evaluate_dialogs)
        numbers: dict[str, Any] = {"loss": seen.loss, "bits_per_byte": seen.bits_per_byte}
        if self.config.probe_dialogs:
            numbers["train_loss"] = self._score(model, self.train, self.config.probe_dialogs).loss
        return numbers

    def _score(self, model: LanguageModel, split: TokenSplit, limit: int | None) -> SplitLoss:
        from chattune.evaluate.loss import split_loss

        us = self.world
        own = split_loss(model, split, self.lengths, context=self.context, limit=limit, part=us.rank, of=us.size)
        return own if us.size == 1 else own.of_totals(us.totals(own.totals()))


class _Answers:
    """Answers the recipe's prompts with the weights of the moment and keeps them for the report."""

    def __init__(self, training: Training, tokens: TokenSet, config: TrainConfig, seed: int, samples: Record) -> None:
        self.training, self.tokens, self.prompts, self.seed, self.samples = training, tokens, config.prompts, seed, samples

    def __call__(self, when: str, model: LanguageModel | None = None) -> None:
        if not self.prompts:
            return
        if model is not None:
            self._ask(when, model)
            return
        with self.training.shown() as shown:
            if shown is not None:
                self._ask(when, shown)

    def _ask(self, when: str, model: LanguageModel) -> None:
        from chattune.generate.reply import ChatModel, Sampling

        talker = ChatModel(model, self.tokens.template)
        asked = [[{"role": "user", "content": prompt}] for prompt in self.prompts]
        replies = talker.replies(asked, Sampling(seed=self.seed, max_tokens=48))
        for prompt, reply in zip(self.prompts, replies, strict=True):
            self.samples.append(step=self.training.state.step, when=when, prompt=prompt, reply=reply.text)


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0)


def _fresh(model: Family, tokens: TokenSet, seed: int, start: Checkpoint | None) -> LanguageModel:
    from chattune.core.errors import ArtifactError

    vocabulary = tokens.tokenizer.vocabulary
    if start is None:
        return model.build(vocabulary, seed)
    begun = start.model()
    if begun.vocabulary != vocabulary or start.manifest["outputs"]["tokenizer.json"] != tokens.manifest["outputs"]["tokenizer.json"]:
        raise ArtifactError(
            "the token set was made with another tokenizer than the checkpoint to start from.", path=str(start.path),
            rule="the checkpoint's own tokenizer", hint="Prepare the dialogs with the tokenizer of that checkpoint.",
        )
    return begun


def _order(config: TrainConfig, model: Family, tokens: TokenSet, seed: int) -> Order:
    from chattune.tokens.order import Order
    from chattune.tokens.windows import windows

    split, context = tokens.split("train"), model.context_length()
    cut = windows(split, context, config.truncation)
    lost = {reason: count for reason, count in cut.dropped.items() if count}
    talk().print(f"{len(cut):,} windows of at most {context} tokens" + (f"; cut away: {lost}" if lost else ""), markup=False)
    return Order(split, cut, config.batcher, config.batch_tokens or 16 * context, context, seed)


def _budget(config: TrainConfig, batches_per_epoch: int) -> Budget:
    from chattune.train.budget import Budget

    if config.minutes is not None:
        return Budget(seconds=config.minutes * 60)
    return Budget(steps=config.steps or max(1, round((config.epochs or 1.0) * batches_per_epoch)))


def _newest(snapshots: Snapshots, us: World, allowed: Path) -> Snapshot | None:
    """The checkpoint to continue from, on every process the same; the first one verifies that it belongs to this run."""
    snapshot = None
    if us.first:
        snapshot = snapshots.load(allow_changes=allowed.exists())
        allowed.unlink(missing_ok=True)
    (step,) = us.same(snapshot.step if snapshot else -1)
    return snapshot if us.first or step < 0 else snapshots.at(int(step))


def _divided(config: TrainConfig, master: LanguageModel, choice: Choice, us: World) -> Alone:
    """The model as it stands on the processes."""
    from chattune.train.device import Worker
    from chattune.train.division import Alone, Replicated

    if us.size == 1:
        return Alone(Worker(master, choice.precision))
    if config.parallel == "ddp":
        return Replicated(Worker(master, choice.precision), us)
    from chattune.train.sharded import Sharded

    return Sharded(master, us, choice.precision)


def _choice(
    snapshot: Snapshot | None, master: LanguageModel, order: Order, config: TrainConfig, budget: Budget, us: World
) -> tuple[Choice, str]:
    """How to compute: as the interrupted run did, as the recipe says, or what a short measurement on a real batch favours.

    All processes measure at once, as they will compute at once, and follow what the first one found.
    """
    from chattune.train import device as computing

    where = str(master.device)
    if snapshot is not None:
        return computing.Choice(where, **snapshot.state["choice"]), "as before the interruption"
    cursor = order.state_dict()
    batch = order.next().shares(config.accumulate, us.size - 1, us.size)[0].to(where)
    order.load_state_dict(cursor)

    def step(model: LanguageModel) -> None:
        config.objective.view(model, batch).loss.backward()  # type: ignore[no-untyped-call]

    precision, why = computing.choose_precision(master, step, config.precision)
    compile = config.compile == "on"
    if config.compile == "auto" and not (us.size > 1 and config.parallel == "fsdp"):
        compile, sentence = computing.choose_compile(master, step, precision, budget, config.accumulate)
        why += sentence
    half, compile_all = us.same(float(precision == "bfloat16"), float(compile))
    return computing.Choice(where, "bfloat16" if half else "float32", bool(compile_all)), why
