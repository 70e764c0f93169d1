"""What a paper claims, and what its printed numbers and ours say of it: of one experiment, or of a whole paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.experiments.claims import claims_of
from src.experiments.experiment import Column, MeanRankOf, RankOf
from src.experiments.results import Results
from src.experiments.verdicts import Agreement, Verdict, agreements, printed_verdict, reproduced_verdict
from src.reporting.paper_tables import written
from src.reporting.provenance import provenance, refuse_mixed

LEGEND = (
    "At this scale a claim holds when the whole 95 % interval (paired bootstrap over seeds and prompts) of each of its "
    "differences is on the claimed side, fails when one is wholly on the other, and is undecided otherwise. The "
    "interval is that of the difference that decided. With one seed it is over prompts alone, and says nothing of "
    "what another seed would give."
)
AGREEMENT = (
    "Kendall's tau-b of the rows, published against reproduced: 1 is the same order, -1 the opposite one, 0 none. Its "
    "interval is that of our numbers; the printed ones have none."
)


@dataclass(frozen=True)
class Row:
    """A claim and its verdicts; ``printed`` is ``None`` where the paper prints nothing that could decide it."""

    table: str
    text: str
    quote: str
    printed: Verdict | None
    reproduced: Verdict


@dataclass(frozen=True)
class ClaimsTable:
    """``title``: of what; ``rows``: claims; ``agreements``: of each column and block, with the table's name; ``below``:
    lines below."""

    title: str
    rows: tuple[Row, ...]
    agreements: tuple[tuple[str, Agreement], ...]
    below: tuple[str, ...]


def claims_table(results: Results, command: str) -> ClaimsTable:
    """The claims of one experiment."""
    return claims_of_paper([results], command)


def claims_of_paper(several: Sequence[Results], command: str) -> ClaimsTable:
    """The claims of several experiments of one paper, in their order. Raises ``UserError`` for records that may not
    stand in one table."""
    rows, taus, below = [], [], []
    for results in several:
        experiment, records = results.plan.experiment, results.records()
        refuse_mixed(results, records)
        name = experiment.path.stem
        rows += [
            Row(
                name,
                one.text,
                one.quote,
                printed_verdict(one.check, experiment),
                reproduced_verdict(one.check, results),
            )
            for one in claims_of(experiment)
        ]
        for column in experiment.columns:
            if is_ranked(column):
                taus += [(name, one) for one in agreements(results, column, experiment.bold_within) if one.rows > 1]
        own = provenance(results, records, command)
        below += [line for line in own if line not in below]
    plan = several[0].plan
    title = f"{plan.experiment.paper}: claims at scale {plan.scale.name}"
    if len(several) == 1:
        title = f"{plan.experiment.paper}, {plan.experiment.path.stem}: claims at scale {plan.scale.name}"
    return ClaimsTable(title, tuple(rows), tuple(taus), (LEGEND, *([AGREEMENT] if taus else []), *below))


def is_ranked(column: Column) -> bool:
    """Whether rows are put in an order by a column that was measured."""
    return column.compared and not isinstance(column.source, (RankOf, MeanRankOf))


def claims_texts(results: Results, command: str) -> dict[str, str]:
    """The claims of one experiment in every format; {} where it has neither claims nor orders to compare."""
    table = claims_table(results, command)
    from src.reporting.claims_formats import texts_of

    return texts_of(table) if table.rows or table.agreements else {}


def write_claims(several: Sequence[Results], folder: Path, command: str) -> list[Path]:
    """Write the claims of a paper's experiments in all formats to ``folder``; returns the files."""
    from src.reporting.claims_formats import texts_of

    table = claims_of_paper(several, command)
    plan = several[0].plan
    stem = f"{plan.experiment.paper}_claims_{plan.scale.name}"
    return [written(folder / f"{stem}.{name}", text) for name, text in texts_of(table).items()]
