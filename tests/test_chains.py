"""Chains: which runs belong together, in which order, and what they began with."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plans import CPU, demo_facts, finetune_plan

from toolbox import chains, embedded, runs
from toolbox.config import Home
from toolbox.hub import store
from toolbox.models import ModelFacts
from toolbox.plan import AnyPlan, EvaluatePlan, ExportPlan, MergePlan, ServedAdapter, ServePlan
from toolbox.runs import Run


class Family:
    """Runs made one after another in a home, each a second older than the next."""

    def __init__(self, home: Path) -> None:
        self.home, self.count = home, 0

    def add(self, plan: AnyPlan) -> Run:
        run = runs.create(self.home / "runs", plan.verb, plan)
        self.count += 1
        os.utime(run.plan_path, (self.count, self.count))
        return run

    def merge(self, of: Run, output: Path, **changes: Any) -> Run:
        fields: dict[str, Any] = {"entry": "e", "model": demo_facts(), "device": CPU, "adapter": of.adapter,
                                  "run": of.id, "output": output, "dtype": "float32"}  # fmt: skip
        return self.add(MergePlan(**fields | changes))

    def evaluate(self, model: ModelFacts, **changes: Any) -> Run:
        return self.add(EvaluatePlan(entry="e", model=model, device=CPU, suites=["demo-qa"], **changes))


@pytest.fixture
def family(home: Path) -> Family:
    return Family(home)


def at(path: Path) -> ModelFacts:
    return msgspec.structs.replace(demo_facts(), id=str(path), path=path)


def test_a_chain_goes_from_training_to_serving_and_leaves_other_branches_out(family: Family) -> None:
    home = family.home
    tuned = family.add(finetune_plan(home))
    output = home / "models" / "merged" / f"{tuned.id} 合并 with a very long name for YAML to put on two lines"
    merged = family.merge(tuned, output)
    elsewhere = family.evaluate(demo_facts(), adapter=tuned.adapter)
    exported = family.add(ExportPlan(entry="e", model=at(output), device=CPU, format="gguf", type="f16",
                                     output=home / "models" / "exported", datasets=[]))  # fmt: skip
    measured = family.evaluate(at(output), base=demo_facts())
    adapters = [ServedAdapter("t", tuned.adapter)]
    served = family.add(ServePlan(entry="e", model=demo_facts(), device=CPU, name="m", engine="transformers",
                                  python=Path("/usr/bin/python3"), adapters=adapters))  # fmt: skip
    stranger = family.add(finetune_plan(home))
    again = family.merge(stranger, home / "models" / "other")
    ids = lambda run: [facts.run.id for facts in chains.chain(run)]  # noqa: E731
    assert ids(tuned) == [run.id for run in (tuned, merged, elsewhere, exported, measured, served)]
    assert ids(merged) == [run.id for run in (tuned, merged, exported, measured)]
    assert ids(measured) == [run.id for run in (tuned, merged, measured)]
    assert ids(stranger) == [stranger.id, again.id]
    assert [run.id for run in chains.later(merged)] == [exported.id, measured.id]
    assert [run.id for run in chains.earlier(measured)] == [tuned.id, merged.id]


def test_order_follows_what_was_made_from_what_and_not_the_files_times(family: Family) -> None:
    tuned = family.add(finetune_plan(family.home))
    merged = family.merge(tuned, family.home / "models" / "m")
    os.utime(tuned.plan_path, (99, 99))  # As `--tune` does, which writes what it chose into the plan.
    assert [run.id for run in chains.related(merged)] == [tuned.id, merged.id]


def test_a_chain_begins_with_what_was_downloaded(family: Family) -> None:
    home = Home(family.home)
    folder = home.models / "someone" / "model"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# m\n")
    record = store.FileRecord("model.safetensors", 3, "ab" * 32, 1, verified=True)
    store.write_manifest(folder, store.Manifest(kind="model", id="someone/model", source="modelscope", endpoint="u",
                                                revision="r1", files=[record], fetched_at=5.0))  # fmt: skip
    tuned = family.add(finetune_plan(family.home, model=at(folder)))
    output = home.models / "merged" / "m"
    family.merge(tuned, output, model=at(folder))
    family.evaluate(at(output), base=at(folder))
    model, rows = chains.origins(chains.chain(tuned))
    assert (model.source, model.revision, model.licence, model.verified) == ("modelscope", "r1", "mit", True)
    assert model.hashes == {"model.safetensors": "ab" * 32}
    assert (rows.source, rows.path) == ("embedded", embedded.DATASETS["demo-persona"])
    assert list(rows.hashes.values()) == [finetune_plan(family.home).datasets[0].sha256]
