"""The page of the logit analysis: one HTML file with embedded pictures, without scripts or external links.

Imports jinja2, a dependency of torch.
"""

from pathlib import Path

from jinja2 import Environment, StrictUndefined

PAGE = Path(__file__).with_name("page.html.j2")


def render(**values: object) -> str:
    """Return the page with its values filled in and escaped; a value that is missing raises."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(PAGE.read_text(encoding="utf-8")).render(**values)
