"""Report of a comparison: `table.md`, plots, and `report.html` with everything in one file."""

import base64
import tempfile
from pathlib import Path

from jinja2 import Environment

from nemo_codert.compare.plan import Settings, plan, shell_command, write_whole
from nemo_codert.compare.plots import plot_dev_wers, plot_reductions, plot_wers
from nemo_codert.compare.results import Results
from nemo_codert.compare.tables import (
    ErrorCounts,
    description,
    explanation,
    markdown,
    pair_tables,
    score_tables,
    scores,
    training_tables,
    verdicts,
)

PICTURES = {
    "wer": {
        "title": "Word error rates",
        "about": "Each dot is a training, each bar their mean; students are blue dots, teachers orange squares.",
    },
    "reduction": {
        "title": "Word errors against {against}",
        "about": "Right of the dashed line a strategy has fewer errors. A line that crosses it shows no difference.",
    },
    "dev_wer": {
        "title": "Word error rate on dev, over the updates",
        "about": "The mean of a strategy's trainings. A curve that falls at the end had too few updates.",
    },
}
TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_comparison_report(settings: Settings, results: Results, folder: Path, against: str) -> str:
    """Write the report's files and return the tables of all folds together. Same input, same bytes.

    Args:
        against: the strategy that the others are compared with.
    """
    counts = ErrorCounts(results, settings.own_seeds)
    found = scores(settings, counts, against)
    together = [*score_tables(settings, found, against, each_fold=False), *pair_tables(settings, counts)]
    each_fold = score_tables(settings, found, against, each_fold=True)
    tables = [*together, *training_tables(settings, counts), *each_fold]
    notes = explanation(found, counts.repeated_sets(), settings.own_seeds)
    images = []
    with tempfile.TemporaryDirectory(prefix="nemo_codert_plots_") as name:
        plots = [Path(name) / f"{plot}.png" for plot in PICTURES]
        plot_wers(found, plots[0])
        plot_reductions(found, against, plots[1])
        plot_dev_wers(results.runs, plots[2])
        for plot in plots:
            if not plot.exists():  # there is nothing to plot
                (folder / plot.name).unlink(missing_ok=True)  # plot of an earlier report
                continue
            images.append({**PICTURES[plot.stem], "data": base64.b64encode(plot.read_bytes()).decode()})
            write_whole(folder / plot.name, plot.read_bytes())
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    html = page.render(
        settings=settings,
        description=[line.replace("`", "") for line in description(settings, counts)],
        verdicts=verdicts(found, against),
        against=against,
        notes=[note.replace("`", '"') for note in notes],
        together=[*together, *training_tables(settings, counts)],
        each_fold=each_fold,
        images=images,
        commands={cell: shell_command(settings, cell) for cell in plan(settings)},
    )
    write_whole(folder / "report.html", html)
    write_whole(folder / "table.md", markdown(settings, counts, tables, notes))
    return "\n".join(table.markdown() for table in together)
