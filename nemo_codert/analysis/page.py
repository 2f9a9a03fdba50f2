"""The page of the logit analysis: one HTML file with embedded pictures, without scripts or external links.

Imports jinja2, a dependency of torch.
"""

from jinja2 import Environment, StrictUndefined

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Logit analysis: {{ report.models[-1].name }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem 1.5rem;
       max-width: 1400px; }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
p, ul, dl { max-width: 60rem; }
dt { font-weight: 600; } dd { margin-left: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.piece, th.piece { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
td.own { font-weight: 700; }
tr.follows { color: #666; }
.warning { border-left: 4px solid #b25000; padding-left: .7rem; }
nav a { margin-right: 1rem; }
a { color: #0058a3; }
code { overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Encoder, prediction and joint logits</h1>
<p><code>{{ report.models[-1].path }}</code> on <code>{{ report.manifest }}</code>:
{{ report.utterances }} utterances, {{ "%.0f"|format(report.audio_seconds) }} s of audio.
{%- if report.models|length > 1 %} The last of {{ report.models|length }} models; all are in measures.csv.
{%- endif %}</p>
{% if report.warning %}
<p class="warning">{{ report.warning }}.</p>
{% endif %}
<nav><a href="#measures">Measures</a><a href="#entropy">Entropy</a>
{%- if agreements %}<a href="#agreement">Agreement</a>{% endif %}<a href="#confusions">Confusions</a>
{%- if pages %}<a href="#utterances">Utterances</a>{% endif %}<a href="#definitions">Definitions</a></nav>
<ul>{% for line in findings %}<li>{{ line }}</li>{% endfor %}</ul>

<h2 id="measures">Measures</h2>
<div class="wide"><table>
<thead><tr><th>branch</th><th class="piece">logits</th><th class="piece">view</th><th>rows</th>
<th>mean entropy,<br>nats</th><th>median</th><th>90% have<br>at most</th>
<th>mean among<br>word pieces</th><th>blank mass</th></tr></thead>
<tbody>
{%- for row in report.models[-1].rows %}
<tr><td>{{ row.branch }}</td><td class="piece">{{ row.source }}</td><td class="piece">{{ row.view }} frames</td>
<td>{{ row.count }}</td><td>{{ number(row.mean) }}</td><td>{{ number(row.median) }}</td>
<td>{{ number(row.ninetieth) }}</td><td>{{ number(row.pieces) }}</td><td>{{ number(row.blank) }}</td></tr>
{%- endfor %}
</tbody></table></div>
<p>Equal logits over {{ classes }} classes have an entropy of {{ number(uniform) }} nats.
<a href="#definitions">What the rows count</a>.</p>

<h2 id="entropy">Distribution of the entropy</h2>
<div class="wide">
{{ image(entropy_png, "Cumulative distributions of the entropies of encoder, joint and prediction logits") }}
</div>
<p>A curve that climbs late has much of its mass at high entropies.</p>

{% if agreements %}
<h2 id="agreement">Teacher and student</h2>
<div class="wide"><table>
<caption>Encoder logits, frame by frame</caption>
<thead><tr><th>model</th><th>step</th><th>frames</th><th>same likeliest class</th>
<th>KL(teacher || student),<br>nats a frame</th></tr></thead>
<tbody>
{%- for model in agreements %}
<tr><td>{{ model.name }}</td><td>{{ "" if model.step is none else model.step }}</td>
<td>{{ model.agreement.frames }}</td>
<td>{{ "%.1f"|format(100 * model.agreement.top1) }}%</td><td>{{ number(model.agreement.divergence) }}</td></tr>
{%- endfor %}
</tbody></table></div>
{% if agreement_png %}
<div class="wide">{{ image(agreement_png, "Agreement of teacher and student over training") }}</div>
{% endif %}
{% endif %}

<h2 id="confusions">What the encoder confuses</h2>
<p>At the frames where a reference piece is emitted: the mean blank mass of the encoder, then its mean probabilities of
the word pieces, blank left out. A frame that emits several pieces has one encoder distribution: pieces that follow
another one in its frame (<i>first</i> below 100%, grey below 50%) cannot be named by it too, and come from the
prediction network.
{%- if confusions_left_out %} The most frequent pieces; all are in confusions.csv.{% endif %}</p>
{% for name, rows in confusions.items() %}
<div class="wide"><table>
<caption>{{ name }}</caption>
<thead><tr><th class="piece">reference</th><th>emitted</th><th>first</th><th>blank</th><th>itself</th>
<th class="piece" colspan="{{ report.top_k }}">likeliest pieces</th></tr></thead>
<tbody>
{%- for row in rows %}
<tr{{ " class=follows"|safe if row.first < 0.5 }}>
<td class="piece">{{ row.piece }}</td><td>{{ row.count }}</td><td>{{ "%.0f"|format(100 * row.first) }}%</td>
<td>{{ number(row.blank) }}</td><td>{{ number(row.own) }}</td>
{%- for piece, probability in row.pieces %}
<td class="piece{{ " own" if piece == row.piece }}">{{ piece }} {{ number(probability) }}</td>
{%- endfor %}</tr>
{%- else %}
<tr><td class="piece" colspan="{{ 5 + report.top_k }}">no reference piece: all transcripts are empty</td></tr>
{%- endfor %}
</tbody></table></div>
{% endfor %}

{% if pages %}
<h2 id="utterances">Utterances</h2>
<p>From top to bottom, aligned in time: waveform, spectrogram; then for each branch the entropies with the reference
pieces over the frames that emit them, and the likeliest classes of the encoder in every frame, from 1 down
({{ blank }} is blank, _ begins a word, below 1% is left out).</p>
<ul>{% for page in pages %}<li><a href="#{{ page.anchor }}">{{ page.id }}</a>: {{ page.text }}</li>{% endfor %}</ul>
{% for page in pages %}
<section id="{{ page.anchor }}">
<h3>{{ page.id }}: {{ page.text }}</h3>
{% for png in page.pngs %}
<div class="wide">{{ image(png, "Waveform, spectrogram, entropies and likeliest pieces of " ~ page.id) }}</div>
{% endfor %}
<p><a href="#utterances">All utterances</a></p>
</section>
{% endfor %}
{% endif %}

<h2 id="definitions">Definitions</h2>
<dl>
<dt>encoder, prediction, joint</dt>
<dd>Encoder logits are the joint's output without its prediction projection, prediction logits the output without the
encoder projection. For CoDERT's additive joint they are its two summands (arXiv:2106.07734). For a stock joint they
are an output it was not trained to give.</dd>
<dt>alignment</dt>
<dd>Of the reference, by the model's own lattice: each frame is left by a blank from the state (tokens emitted so far)
that is likeliest over all alignments, and each token is emitted in its likeliest frame.</dd>
<dt>all frames</dt>
<dd>Encoder: every frame. Joint: every node of the lattice that the alignment passes, that is each frame where it is
left by a blank and each token where it is emitted. Prediction: every state, from no token to all, once.</dd>
<dt>non-blank frames</dt>
<dd>Those in which the alignment emits a token, once each; joint and prediction are at the node, and the state, from
which the frame's first token is emitted. (At further tokens of a frame the prediction network decides.)</dd>
<dt>entropy among word pieces</dt>
<dd>Of the distribution without blank. The entropy over all classes is that of blank or not, which is doubt about the
moment of an emission, plus this one times the mass that is not blank.</dd>
<dt>blank mass</dt><dd>Mean probability of blank.</dd>
<dt>agreement</dt>
<dd>Over the frames that the distillation loss compares, at temperature 1; where the teacher has more frames, groups of
them are averaged.</dd>
</dl>
</body>
</html>
"""


def render(**values: object) -> str:
    """Render the page with its values escaped; raises for a missing value."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(PAGE).render(**values)
