"""Report of a comparison: `table.md`, plots, and `report.html` with everything in one file."""

import base64
import tempfile
from pathlib import Path

from jinja2 import Environment

from nemo_codert.compare.plan import Settings, plan, shell_command, write_whole
from nemo_codert.compare.plots import plot_reductions, plot_wers
from nemo_codert.compare.results import Results
from nemo_codert.compare.tables import (
    ErrorCounts,
    description,
    explanation,
    markdown,
    pair_tables,
    score_tables,
    scores,
)

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Comparison of strategies</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; font-variant-numeric: tabular-nums }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #888 }
th:first-child, td:first-child { text-align: left }
.better { color: #116611; font-weight: 600 }
.worse { color: #aa1111; font-weight: 600 }
img { max-width: 100%; display: block; margin: 1em 0 }
code, pre { background: #f4f4f4; font-size: 13px }
pre { padding: 0.6em; white-space: pre-wrap; overflow-wrap: anywhere }
</style>
</head>
<body>
<h1>Comparison of strategies</h1>
{% for line in description %}<p>{{ line }}</p>
{% endfor %}
{% for image in images %}<img src="data:image/png;base64,{{ image.data }}" alt="{{ image.name }}">
{% endfor %}
{% for table in tables %}<h2>{{ table.title }}</h2>
<table>
<tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>
{%- for cell in row %}<td{% if cell in ("better", "worse") %} class="{{ cell }}"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% endfor %}</table>
{% endfor %}
<h2>How to read this</h2>
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}
<h2>What each strategy changes in the config of the lone student</h2>
{% for strategy, changes in settings.changes.items() %}<p><b>{{ strategy }}</b>:
{% for key, value in changes.items() %}<code>{{ key }}={{ value }}</code> {% else %}nothing{% endfor %}</p>
{% endfor %}
<h2>Settings</h2>
<p>Versions: {% for package, version in settings.versions.items() %}{{ package }} {{ version }} {% endfor %}</p>
{% for name, fold in settings.folds.items() %}<details><summary>SHA-256 of the files of fold {{ name }}</summary>
<pre>{% for file, hash in fold.sha256.items() %}{{ hash }}  {{ file }}
{% endfor %}</pre></details>
{% endfor %}
<details><summary>Config of the lone student</summary>
<pre>{% for key, value in settings.config.items() %}{{ key }}: {{ value }}
{% endfor %}</pre></details>
<h2>Commands</h2>
<p>From the repository, with DATA the data folder and OUTPUT any folder; a static strategy after its teacher.</p>
{% for cell, command in commands.items() %}<details><summary>{{ cell }}</summary><pre>{{ command }}</pre></details>
{% endfor %}
</body>
</html>
"""


def write_report(settings: Settings, results: Results, folder: Path, against: str) -> str:
    """Write the report's files and return the tables of all folds together. Same input, same bytes.

    Args:
        against: the strategy that the others are compared with.
    """
    counts = ErrorCounts(results)
    found = scores(settings, counts, against)
    together = [*score_tables(settings, found, against, each_fold=False), *pair_tables(settings, counts)]
    tables = [*together, *score_tables(settings, found, against, each_fold=True)]
    notes = explanation(found, counts.repeated_sets())
    images = []
    with tempfile.TemporaryDirectory(prefix="nemo_codert_plots_") as name:
        wers, reductions = Path(name) / "wer.png", Path(name) / "reduction.png"
        plot_wers(found, wers)
        plot_reductions(found, against, reductions)
        for plot in (wers, reductions):
            if not plot.exists():  # there is nothing to plot
                (folder / plot.name).unlink(missing_ok=True)  # plot of an earlier report
                continue
            images.append({"name": plot.name, "data": base64.b64encode(plot.read_bytes()).decode()})
            write_whole(folder / plot.name, plot.read_bytes())
    page = Environment(autoescape=True).from_string(TEMPLATE)
    html = page.render(
        settings=settings,
        description=[line.replace("`", "") for line in description(settings, counts)],
        notes=[note.replace("`", '"') for note in notes],
        tables=tables,
        images=images,
        commands={cell: shell_command(settings, cell) for cell in plan(settings)},
    )
    write_whole(folder / "report.html", html)
    write_whole(folder / "table.md", markdown(settings, counts, tables, notes))
    return "\n".join(table.markdown() for table in together)
