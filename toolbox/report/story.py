"""What a report is written from: a run, and the whole chain that it belongs to."""

from pathlib import Path

import msgspec

from toolbox import chains
from toolbox.chains import Origin
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

    @classmethod
    def of(cls, run: Run) -> "Story":
        told = chains.chain(run)
        home = run.path.absolute().parents[1]
        hide = Mask(home, (data for facts in told for data in (facts.plan, facts.result)))
        origins = chains.origins(told)
        chain = [hide.facts(facts) for facts in told]
        return cls(run, chain, told, origins, pipeline.graph(told, chain, origins, hide), hide)

    @property
    def own(self) -> Facts:
        """The run that the report is written for."""
        return next(facts for facts in self.chain if facts.run.id == self.run.id)

    @property
    def home(self) -> Path:
        return self.run.path.absolute().parents[1]

    def of_verb(self, *verbs: str) -> list[Facts]:
        return [facts for facts in self.chain if facts.verb in verbs]

    def named(self, facts: Facts) -> str:
        """The step's number in the chain, as the table of steps has it."""
        return str(self.chain.index(facts) + 1)
