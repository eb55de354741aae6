"""The rows of a plan as its stage takes them, in the run's store, and which of them are held out.

`finetune` comes here before the first step. Nothing grows with the data but the store and a few bytes an item.
"""

import hashlib
import random
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from toolbox import datasets, environment, files
from toolbox.datasets import Row, contents
from toolbox.errors import DataError, InputError, Interrupted
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.training import encoding, store
from toolbox.training.encoding import Chunk, Encoder
from toolbox.training.stages import Stage
from toolbox.training.store import Facts, Items, Store, Writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER, HELD_OUT = "rows", "held_out.json"
CHUNK_ROWS, CHUNK_CHARS = 256, 1 << 20
"""Rows that are encoded together: so many, or as many as have so many characters."""
MANY_ROWS = 5000
"""From so many on, several processes encode them."""
TOLD_EVERY_S = 5.0
TOKENIZER_FILES = ("tokenizer*", "*.jinja", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model")


class Prepared(msgspec.Struct):
    """What a training has to read: `samples` to train on, as often as they are taken, and `held_out` ones."""

    samples: Items
    held_out: Items
    facts: Facts
    twice: int
    """Items that are left out of the training, since the same stands among the held-out ones."""

    def distinct(self, seen: np.ndarray) -> Items:
        """Every held-out item, and those `samples` whose places are `seen`, each once."""
        return Items(self.samples.store, np.unique(np.concatenate([self.samples.places[seen], self.held_out.places])))

    def remove(self) -> None:
        """Delete the store: once the training is done nobody reads it again."""
        self.samples.store.close()
        shutil.rmtree(self.samples.store.folder)

    def probes(self) -> list[Any]:
        """The two shortest items and the one with the longest sequence."""
        known = self.distinct(np.arange(len(self.samples)))
        longest = known.store.index.longest[known.places]
        return [*known.by_size()[:2], known[int(longest.argmax())]]


def prepare(
    plan: FinetunePlan, stage: Stage, tokenizer: "PreTrainedTokenizerBase", run: Run, reporter: Reporter
) -> Prepared:
    """The items of a plan, from the run's store where an earlier start has made it of the same.

    Raises InputError where a row can't be used or fewer than two are left, Interrupted where a stop is asked for.
    """
    folder, fingerprint = run.path / FOLDER, _fingerprint(plan)
    held = store.read(folder, stage.item, fingerprint)
    if held is None:
        reporter.phase(_("Reading the data"))
        filler = _Filler(plan, stage, tokenizer, reporter)
        store.write(folder, fingerprint, filler.fill)
        held = store.read(folder, stage.item, fingerprint)
        files.write_json(run.path / HELD_OUT, filler.held_out)
    if held is None:
        raise InputError(_("{path} can't be read again.").format(path=folder), _("Look at that disk; start again."))
    return _tell(_selected(held), plan)


def _selected(held: Store) -> Prepared:
    """What is trained on, and what is held out; what says the same as a held-out item is neither."""
    index = held.index
    out, numbers = index.repeats == 0, np.arange(len(held))
    twice = ~out & np.isin(index.keys, index.keys[out])
    taken = np.repeat(numbers, np.where(twice, 0, index.repeats))
    return Prepared(Items(held, taken), Items(held, numbers[out]), held.facts, int(twice.sum()))


def _tell(made: Prepared, plan: FinetunePlan) -> Prepared:
    """Itself, said aloud. Raises InputError where nothing is left to train on."""
    facts, kept = made.facts, len(made.samples) + len(made.held_out) + made.twice
    told = [
        _("{kept} rows; {cut} cut at {max_length} tokens, {dropped} dropped, as no answer was left.").format(
            kept=kept, cut=facts.cut, max_length=plan.training.max_length, dropped=facts.dropped
        )
    ]
    if facts.split:
        told.append(_("{count} documents are split into pieces; nothing of them is lost.").format(count=facts.split))
    if made.twice:
        told.append(
            _("{count} rows say the same as a held-out row and are left out of the training.").format(count=made.twice)
        )
    told += [
        _("{name}: the chat template has no place for tools; in {count} rows they are written as text.").format(
            name=name, count=count
        )
        for name, count in facts.written_out.items()
    ]
    print("\n".join(told), flush=True)
    if not len(made.samples) or kept < 2:
        raise DataError(
            _("Of the data, {kept} rows are left to train on.").format(kept=len(made.samples)),
            _("Use a larger --max-length, or data with more rows."),
        )
    return made


class _Filler:
    """Puts a plan's rows into a store, chunk by chunk."""

    def __init__(
        self, plan: FinetunePlan, stage: Stage, tokenizer: "PreTrainedTokenizerBase", reporter: Reporter
    ) -> None:
        self._plan, self._as_prompts, self._reporter = plan, stage.as_prompts, reporter
        self._encoder = Encoder(stage, tokenizer, plan.training.max_length)
        self._told = time.monotonic()
        self.held_out: dict[str, list[int]] = {}
        """The numbers of the rows that are held out, by data set."""

    def fill(self, writer: Writer) -> Facts:
        facts, done = Facts(), 0
        drawn_from = {spec.name for spec in self._plan.datasets}
        rows = sum(spec.distinct for spec in [*self._plan.datasets, *self._plan.eval_datasets])
        workers = environment.threads() if rows >= MANY_ROWS else 1
        for chunk, made in encoding.ordered(_chunks(self._plan, self._as_prompts), self._encoder, workers):
            writer.add(made.packed, chunk.repeats)
            facts.cut += made.cut
            facts.dropped += made.dropped
            facts.split += made.split
            if made.written_out:
                facts.written_out[chunk.dataset] = facts.written_out.get(chunk.dataset, 0) + made.written_out
            if not chunk.repeats and chunk.dataset in drawn_from:
                self.held_out.setdefault(chunk.dataset, []).extend(row.number for row in chunk.rows)
            done += len(chunk.rows)
            self._look_up(done, rows)
        return facts

    def _look_up(self, done: int, rows: int) -> None:
        """Say how far it is, from time to time, and heed a wish to stop."""
        if self._reporter.stopping:
            raise Interrupted(_("Stopped before the first step."))
        if time.monotonic() - self._told >= TOLD_EVERY_S:
            self._told = time.monotonic()
            self._reporter.phase(_("Reading the data: {done} of {rows} rows").format(done=done, rows=rows))


def _chunks(plan: FinetunePlan, as_prompts: bool) -> Iterator[Chunk]:
    """All rows of the plan, each once; those of a data set that are taken equally often go together."""
    held_out = _drawn(plan)
    number = 0
    for spec in plan.datasets:
        waiting: dict[int, list[Row]] = {}
        chars: dict[int, int] = {}
        for row, times in datasets.counted(spec, as_prompts):
            repeats = 0 if number in held_out else times
            number += 1
            group = waiting.setdefault(repeats, [])
            group.append(row)
            chars[repeats] = chars.get(repeats, 0) + contents.chars(row)
            if len(group) == CHUNK_ROWS or chars[repeats] > CHUNK_CHARS:
                yield Chunk(spec.name, waiting.pop(repeats), repeats)
                chars[repeats] = 0
        for repeats, group in waiting.items():
            yield Chunk(spec.name, group, repeats)
    for spec in plan.eval_datasets:
        rows = (row for row, _times in datasets.counted(spec, as_prompts))
        while some := list(islice(rows, CHUNK_ROWS)):
            yield Chunk(spec.name, some, 0)


def _drawn(plan: FinetunePlan) -> set[int]:
    """Which rows are held out, of all that are taken, by their place among them: `eval_rows` by the seed, never all."""
    rows = sum(spec.distinct for spec in plan.datasets)
    return set(random.Random(plan.seed).sample(range(rows), max(0, min(plan.eval_rows, rows - 1))))


def _fingerprint(plan: FinetunePlan) -> str:
    """Tells whether data, tokenizer and what is made of them are the same as they were."""
    data = [plan.datasets, plan.eval_datasets, plan.eval_rows, plan.seed]
    facts = [plan.version, plan.stage, plan.options, plan.training.max_length, plan.chat_template, *data]
    digest = hashlib.sha256(msgspec.json.encode(facts, enc_hook=str))
    for path in sorted({path for pattern in TOKENIZER_FILES for path in Path(plan.model.path).glob(pattern)}):
        digest.update(f"{path.name} {files.sha256(path)}".encode())
    return digest.hexdigest()
