"""The stage `train`: from a token set to a checkpoint. Thin: it gathers what `loop` computes with, and writes what comes out."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core import files, processes
from chattune.core.errors import TrialError
from chattune.core.progress import Progress, talk
from chattune.core.record import Record, Unrecorded
from chattune.core.stage import STATE, keep_summary, question_of, stage, versions
from chattune.models.checkpoint import Checkpoint
from chattune.models.families import Family
from chattune.models.families.gpt import GPT
from chattune.tokens.token_set import TokenSet
from chattune.train import trial as gate
from chattune.train.config import TrainConfig
from chattune.train.trial import RECORD

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
    _refuse_without_start(config, start)
    if config.limits.any and processes.first() and not any((out / STATE).glob("*")):
        from chattune.train.estimate import estimate_on, refuse_over_limits

        refuse_over_limits(estimate_on(tokens, {"model": model, "train": config, "seed": seed}), config)
    if config.processes > 1 and not processes.launched():
        from chattune.train.launch import launch

        launch(out, config.processes)
        return Checkpoint(out)
    import torch

    from chattune.train import device as computing
    from chattune.train import world

    torch.set_num_threads(config.threads or max(1, len(_cores()) // processes.beside()))
    us = world.World.join()
    where = computing.pick_device()
    computing.deterministic(where)
    begun = _Begun(config, model, seed, tokens, start, out, where, us)
    tried = _tried(begun) if config.trial else None
    session = _Session(begun, 1.0, out / STATE)
    talk().print(_learning(config, session.training.worker.master), markup=False)
    reason = session.fit()
    _finish(session, reason, tried)
    return Checkpoint(out)


@dataclass(frozen=True)
class _Begun:
    """What was asked, where it is computed, and with whom."""

    config: TrainConfig
    model: Family
    seed: int
    tokens: TokenSet
    start: Checkpoint | None
    out: Path
    where: str
    us: World

    def master(self) -> LanguageModel:
        """The model as training begins with it: its weights, its adapter, what is frozen, what regularizers edit."""
        from chattune.models.freezing import freeze

        master = _fresh(self.model, self.tokens, self.seed, self.start)
        if self.config.adapter:
            self.config.adapter.attach(master, self.seed)
        if self.config.freeze:
            freeze(master, self.config.freeze)
        for method in self.config.regularizers:
            method.edit(master)
        return master.to(self.where)

    def look(self, model: LanguageModel, world: World) -> _Look:
        return _Look(self.tokens, _context(self.config, model), self.config, world)


class _Session:
    """One training from its start, or from where it was interrupted, to its end: the whole, or a trial on a share of the dialogs."""

    def __init__(self, begun: _Begun, share: float, folder: Path) -> None:
        from chattune.train import device as computing
        from chattune.train import loop, state
        from chattune.train.prefetch import Prefetched

        config, us, out = begun.config, begun.us, begun.out
        self.begun, self.trial = begun, share < 1.0
        master = begun.master()
        order = _order(config, master, begun.tokens, begun.seed, share)
        folder.mkdir(parents=True, exist_ok=True)
        self.snapshots = state.Snapshots(
            folder, config.keep_last, configuration=question_of(out)["config"], data=begun.tokens.digest, versions=versions(),
            on_save_error=config.on_save_error,
        )
        snapshot = _newest(self.snapshots, us, out / STATE / ALLOW_CHANGES)
        budget = _budget(config, order.batches_per_epoch, share)
        self.choice, why = _choice(snapshot, master, order, config, budget, us)
        together = f", {us.size} processes ({config.parallel})" if us.size > 1 else ""
        talk().print(f"computing on {self.choice}{together}  ({why})", markup=False)
        division = _divided(config, master, self.choice, us)
        ahead = order if begun.where == "cpu" else Prefetched(order, pin=True)
        self.training = training = loop.Training(config, division, ahead, budget, begun.seed, device=begun.where)
        training.state.choice = {"precision": self.choice.precision, "compile": self.choice.compile}
        names = (RECORD, "trial-samples.jsonl") if self.trial else ("metrics.jsonl", "samples.jsonl")
        self.record, samples = (Record(out / name) if us.first else Unrecorded() for name in names)
        if snapshot is not None:
            training.restore(snapshot)
            talk().print(f"resuming after step {snapshot.step}", markup=False)
        self.record.rewind(training.state.step)
        samples.rewind(training.state.step)
        worker = division.worker
        if config.checkpoint_activations:
            computing.checkpoint_activations(worker.model)
        if self.choice.compile:
            worker.model.hidden = computing.compiled(worker.model)  # type: ignore[method-assign]
        worker.model.train()
        self.answers = _Answers(training, begun.tokens, () if self.trial else config.prompts, begun.seed, samples)
        if snapshot is None:
            self.answers("before")

    def kept(self) -> LanguageModel | None:
        """The trained model with the weights to keep, in float32: on the first process, else none. The training is over then."""
        import torch

        trained = self.training.kept()
        if trained is None or all(p.dtype == torch.float32 for p in trained.parameters()):
            return trained
        whole = self.begun.master()  # frozen weights were rounded to compute with; here they are as they were
        with torch.no_grad():
            learned = trained.changing()
            for name, value in whole.changing().items():
                value.copy_(learned[name])
        return whole

    def fit(self) -> str:
        """To the end; the reason it ended."""
        from chattune.train import interrupt, loop, world

        begun, training = self.begun, self.training
        bar = Progress("trial" if self.trial else "train", training.budget.total(0, 0.0), start=training.state.step)
        bar.open()
        try:
            with interrupt.listening() as asked:
                alone = world.World() if training.division.lockstep else begun.us
                look = begun.look(training.worker.master, alone)
                half_way = lambda: self.answers("half-way")  # noqa: E731
                around = loop.Surroundings(self.record, self.snapshots, asked, bar, begun.out.name, look, half_way)
                return loop.fit(training, around)
        finally:
            bar.close()


def _tried(begun: _Begun) -> dict[str, Any]:
    """Train on a share of the dialogs and judge it, once; `TrialError` where that did not help."""
    trial, out, us = begun.config.trial, begun.out, begun.us
    assert trial is not None
    found = gate.known(out) if us.first else None
    (finished,) = us.same(float(found is not None))
    if not finished:
        talk().print(f"trial  {trial.fraction:.0%} of the dialogs first", markup=False)
        session = _Session(begun, trial.fraction, out / STATE / gate.STATE)
        session.fit()
        after = session.kept()
        if after is not None:
            found = _judged(begun, after)
            files.write_json(out / gate.FILE, found)
    (passed,) = us.same(float(found["passed"]) if found else 0.0)
    found = found or {"passed": bool(passed)}
    if us.first:
        talk().print(f"trial  {gate.said(found)}: {'passed' if passed else 'not passed'}", markup=False)
        gate.require_passed(found, out)
    if not passed:
        raise TrialError("the trial did not improve the model.", path="train.trial")  # told in full by the first process
    return found


def _judged(begun: _Begun, after: LanguageModel) -> dict[str, Any]:
    """The held-out loss of the model after the trial beside that of the model to start from."""
    from chattune.evaluate.loss import split_loss

    assert begun.config.trial is not None
    validation, lengths = begun.tokens.split("validation"), begun.tokens.tokenizer.byte_lengths
    context, limit = _context(begun.config, after), begun.config.trial.dialogs
    tried = split_loss(after.float(), validation, lengths, context=context, limit=limit)
    before = split_loss(_fresh(begun.model, begun.tokens, begun.seed, begun.start), validation, lengths, context=context, limit=limit)
    return {"fraction": begun.config.trial.fraction, **gate.verdict(before, tried, begun.seed)}


def _finish(session: _Session, reason: str, tried: dict[str, Any] | None) -> None:
    """Answer the prompts once more with the weights to keep, write the Hugging Face directory, the adapter and the summary."""
    from chattune.models.checkpoint import save_model
    from chattune.train.device import peak_memory

    training, choice, begun = session.training, session.choice, session.begun
    state, model, adapter = training.state, session.kept(), begun.config.adapter
    if model is None:
        return  # the first process writes
    model.after_training(training.order.epoch_of_batches)
    session.answers("after", model.eval())
    kept = state.best or {"step": state.step, "loss": state.history[-1]["loss"]}
    learned, card = sum(p.numel() for p in training.parameters), _card(training, choice, kept)
    model = model.float().cpu()
    if adapter:
        from chattune.models.adapters._files import FOLDER, write_adapter

        write_adapter(adapter, model, begun.out / FOLDER)
        adapter.merge(model) if adapter.merges else adapter.detach(model)
    save_model(model, begun.tokens.path, begun.out, card, adapter=None if adapter is None or adapter.merges else adapter)
    keep_summary(
        begun.out,
        {
            "parameters": sum(p.numel() for p in model.parameters()), "learned": learned, "steps": state.step, "tokens": state.tokens,
            "train_seconds": round(state.seconds, 1), "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9)),
            "validation_loss": kept["loss"], "kept_step": kept["step"], "stopped": reason, "computed": str(choice),
            "memory_bytes": peak_memory(), **({"trial": tried} if tried else {}),
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

    def __init__(self, training: Training, tokens: TokenSet, prompts: tuple[str, ...], seed: int, samples: Record) -> None:
        self.training, self.tokens, self.prompts, self.seed, self.samples = training, tokens, prompts, seed, samples

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
    from chattune.core.errors import ArtifactError, SettingError

    vocabulary = tokens.tokenizer.vocabulary
    if start is None:
        return model.build(vocabulary, seed)
    if start.adapter is not None:
        raise SettingError(
            f"has a {start.adapter.name} adapter beside its weights, which cannot be merged.", path=str(start.path),
            value=start.adapter.name, rule="plain weights to start from", hint="Start from the model that it was trained from.",
        )
    begun = start.model()
    # Tables of models from elsewhere often have more rows than the tokenizer has tokens.
    if begun.vocabulary < vocabulary or start.manifest["outputs"]["tokenizer.json"] != tokens.manifest["outputs"]["tokenizer.json"]:
        raise ArtifactError(
            "the token set was made with another tokenizer than the checkpoint to start from.", path=str(start.path),
            rule="the checkpoint's own tokenizer", hint="Prepare the dialogs with the tokenizer of that checkpoint.",
        )
    return begun


def _refuse_without_start(config: TrainConfig, start: Checkpoint | None) -> None:
    from chattune.core.errors import SettingError

    for name in ("adapter", "trial"):
        if start is None and (value := getattr(config, name)) is not None:
            raise SettingError(
                "needs a model to start from: fresh weights have nothing to keep.", path=f"train.{name}",
                value=getattr(value, "name", name), rule="a model that was trained before",
                hint="Bring one with `chattune import`, or name a run with --start.",
            )


def _learning(config: TrainConfig, master: LanguageModel) -> str:
    """How much learns, by what; and what is frozen, layers of the same name together."""
    from chattune.models.adapters._nf4 import Packed

    packed = sum(math.prod(module.shape) for module in master.modules() if isinstance(module, Packed))
    total = sum(p.numel() for p in master.parameters()) + packed
    learning = sum(p.numel() for p in master.trainable().values())
    lines = [f"learning  {learning:,} of {total:,} numbers ({learning / total:.1%})"]
    if config.adapter:
        lines[0] += f", in {config.adapter.name}, by {config.optimizer.name} at {config.optimizer.lr}"
    elif learning < total:
        frozen = Counter(re.sub(r"\.\d+\.", ".*.", name) for name, p in master.named_parameters() if not p.requires_grad)
        lines.append("frozen    " + "  ".join(name if count == 1 else f"{name} ({count})" for name, count in frozen.items()))
    return "\n".join(lines)


def _context(config: TrainConfig, model: LanguageModel) -> int:
    """Tokens of the longest window."""
    return min(model.family.context_length(), config.context or model.family.context_length())


def _order(config: TrainConfig, master: LanguageModel, tokens: TokenSet, seed: int, share: float) -> Order:
    """The windows of the training split; of a random share of its dialogs, for a trial."""
    from chattune.core.seeds import generator
    from chattune.tokens.order import Order
    from chattune.tokens.windows import windows

    split, context = tokens.split("train"), _context(config, master)
    cut = windows(split, context, config.truncation)
    lost = {reason: count for reason, count in cut.dropped.items() if count}
    if share < 1.0:
        cut = gate.share(cut, share, len(split), generator(seed, "trial"))
    talk().print(f"{len(cut):,} windows of at most {context} tokens" + (f"; cut away: {lost}" if lost else ""), markup=False)
    return Order(split, cut, config.batcher, config.batch_tokens or 16 * context, context, seed)


def _budget(config: TrainConfig, batches_per_epoch: int, share: float) -> Budget:
    """How long; a share of that for a trial. Epochs are already those of its own dialogs."""
    from chattune.train.budget import Budget

    if config.minutes is not None:
        return Budget(seconds=config.minutes * 60 * share)
    if config.steps is not None:
        return Budget(steps=max(1, round(config.steps * share)))
    return Budget(steps=max(1, round((config.epochs or 1.0) * batches_per_epoch)))


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
    if choice.precision == "int8":
        from chattune.core.errors import SettingError

        raise SettingError(
            "divided weights are not computed with in int8.", path="train.precision", value="int8", rule="auto with parallel=fsdp",
            hint="Set train.parallel=ddp.",
        )
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
    agreed, compile_all = us.same(float(computing.PRECISIONS.index(precision)), float(compile))
    return computing.Choice(where, computing.PRECISIONS[int(agreed)], bool(compile_all)), why
