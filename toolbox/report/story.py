"""What a report is written from: a run, and the whole chain that it belongs to."""

from pathlib import Path

import msgspec

from toolbox import chains, diagnosis
from toolbox.chains import Origin
from toolbox.diagnosis import Cause
from toolbox.facts import Facts
from toolbox.report import pipeline
from toolbox.report.publishing import Mask
from toolbox.runs import Run


class Story(msgspec.Struct, frozen=True):
    """A run and its chain, oldest first, without anything of the machine but what the runs' folders hold."""

    run: Run
    chain: list[Facts]
    told: list[Facts]
    """The chain as it is, with this machine's paths, for what is looked up by them; nothing of it is printed."""
    origins: list[Origin]
    graph: pipeline.Graph
    hide: Mask
    diagnosed: dict[str, list[Cause]]
    """What was found of runs, by id; reports that are written together share it."""

    @classmethod
    def of(cls, run: Run, diagnosed: dict[str, list[Cause]] | None = None) -> "Story":
        told = chains.chain(run)
        home = run.path.absolute().parents[1]
        hide = Mask(home, (data for facts in told for data in (facts.plan, facts.result)))
        origins = chains.origins(told)
        chain = [hide.facts(facts) for facts in told]
        graph = pipeline.graph(told, chain, origins, hide)
        return cls(run, chain, told, origins, graph, hide, {} if diagnosed is None else diagnosed)

    @property
    def own(self) -> Facts:
        """The run that the report is written for."""
        return next(facts for facts in self.chain if facts.run.id == self.run.id)

    @property
    def home(self) -> Path:
        return self.run.path.absolute().parents[1]

    def causes(self, run: Run) -> list[Cause]:
        """Why a run of the chain failed, or what is odd about it."""
        if run.id not in self.diagnosed:
            self.diagnosed[run.id] = diagnosis.diagnose(run)
        return self.diagnosed[run.id]

    def of_verb(self, *verbs: str) -> list[Facts]:
        return [facts for facts in self.chain if facts.verb in verbs]

    def named(self, facts: Facts) -> str:
        """The step's number in the chain, as the table of steps has it."""
        return str(self.chain.index(facts) + 1)
