"""docs/configuration.md says what nemo_codert/config does."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from nemo_codert.config.pair_checks import CHOICES
from nemo_codert.config.schema import CoDERTConfig, StudentConfig

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading, without its header."""
    section = TEXT.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def flat_defaults(schema: type, prefix: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in dataclasses.asdict(schema()).items():
        if isinstance(value, dict) and key != "distillation":
            values |= {f"{prefix}{key}.{inner}": v for inner, v in value.items()}
        else:
            values[f"{prefix}{key}"] = value
    return values


@pytest.mark.parametrize(
    "heading, schema", [("## `model.student`", StudentConfig), ("## `model.codert`", CoDERTConfig)]
)
def test_the_documented_keys_and_defaults_are_those_of_the_dataclass(heading, schema):
    documented = {key.strip("`"): default for key, _, _, default in rows(heading)}
    expected = flat_defaults(schema)
    assert list(documented) == list(expected)
    required = {key for key, default in documented.items() if default == "required"}
    assert required == ({"encoder"} if schema is StudentConfig else set())
    for key in documented.keys() - required:
        value = yaml.safe_load(documented[key].strip("`"))
        assert value == expected[key] and type(value) is type(expected[key]), key


def test_the_base_config_states_the_same_defaults():
    model = yaml.safe_load((ROOT / "conf" / "base.yaml").read_text())["model"]
    assert model["codert"] == {**dataclasses.asdict(CoDERTConfig()), "distillation": {}}  # the strategies have terms
    assert model["student"] == {**dataclasses.asdict(StudentConfig()), "encoder": "???"}


def test_the_choices_are_documented():
    values = {key.strip("`"): text for key, _, text, _ in rows("## `model.codert`")}
    for key, allowed in CHOICES.items():
        assert set(allowed) <= set(re.findall(r"`(\w+)`", values[key])), key


def test_the_strategy_table_is_what_the_files_set():
    table = {
        row[0].strip("`"): [cell.strip("`") for cell in row[1:]]
        for row in rows("## Strategies (`strategy=...`, files in `conf/strategy`)")
    }
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "strategy").glob("*.yaml")}
    assert table.keys() == files.keys()
    for name, content in files.items():
        codert = content["model"]["codert"]
        cells = [content["train"], codert.get("teacher", "-"), codert.get("share_decoder", "-")]
        terms = {name: term for name, term in (codert["distillation"] or {}).items() if term}
        cells.append(", ".join(f"{name} {term['weight']}" for name, term in terms.items()) or "none")
        assert table[name] == [str(cell).lower() for cell in cells]


def test_every_stock_key_that_the_code_names_is_in_the_document():
    source = "".join(path.read_text() for path in sorted((ROOT / "nemo_codert" / "config").glob("*.py")))
    named = set(
        re.findall(
            r'[f"]model\.((?:joint|loss|decoding|tokenizer|preprocessor|variational_noise|freeze_updates)\.\w+)',
            source,
        )
    )
    named |= set(re.findall(r"model\.(aux_ctc|adapters|rnnt_reduction|optim_param_groups)\b", source))
    assert len(named) > 15
    undocumented = [key for key in sorted(named) if key.rsplit(".", 1)[-1] not in TEXT]
    assert not undocumented
