"""The report: its folder, its tables, its pictures, and a page that stands alone."""

import base64
import csv
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from nemo_codert.analysis.figures import (
    DPI,
    UtterancePage,
    agreement_figure,
    entropy_figure,
    piece_label,
    utterance_figures,
)
from nemo_codert.analysis.measures import Agreement, Confusions, Readings, Shift
from nemo_codert.analysis.readings import (
    FRAME_SOURCES,
    SOURCES,
    VIEWS,
    WITH_PRIOR,
    Analysis,
    BranchReadings,
    FrameReadings,
)
from nemo_codert.analysis.report import (
    LogitReport,
    MeasuredModel,
    findings,
    measure_rows,
    new_folder,
    write_logit_report,
)

PIECES = ["▁a", "b", "<c>", "$d", "e"]
TAGS_WITHOUT_END = {"meta", "br", "img"}


def make_readings(rows: int, value: float = 0.5) -> Readings:
    return Readings(np.full(rows, value), np.full(rows, value / 2), np.full(rows, 0.25))


def make_branch(rows: int = 20, encoder: float = 1.0, joint: float = 0.25) -> BranchReadings:
    values = {"encoder": encoder, "prediction": 0.5, "joint": joint, WITH_PRIOR: 0.75}
    confusions = Confusions()
    confusions.add(torch.eye(6)[:3] * 4, torch.tensor([0, 0, 2]), torch.tensor([True, True, False]))
    readings = {(source, view): make_readings(rows, values[source]) for source in SOURCES for view in VIEWS}
    return BranchReadings(PIECES, 0.08, readings, confusions)


def make_frames(num_frames: int, top_k: int = 3) -> FrameReadings:
    return FrameReadings(
        readings={source: make_readings(num_frames) for source in FRAME_SOURCES},
        classes=np.tile(np.arange(top_k), (num_frames, 1)),
        probabilities=np.tile(np.array([0.7, 0.2, 0.005])[:top_k], (num_frames, 1)),
        states=np.repeat([0, 2, 3], [1, 1, num_frames - 2]),
        frames=np.array([1, 1, 2]),
        tokens=np.array([0, 2, 3]),
        first=np.array([True, False, True]),
        emitting=np.array([0.4, 0.6]),
    )


def make_page(name: str = "a <b>", num_frames: int = 12, seconds_per_frame: float = 0.08) -> UtterancePage:
    signal = np.sin(np.arange(int(16000 * num_frames * seconds_per_frame)) / 9).astype(np.float32)
    seconds = {"student": seconds_per_frame, "teacher": seconds_per_frame / 2}
    branches = {"student": make_frames(num_frames), "teacher": make_frames(2 * num_frames)}
    pieces, texts = {"student": PIECES, "teacher": PIECES}, {"student": "a b", "teacher": "a & c"}
    return UtterancePage(name, "a & b", signal, 16000, branches, seconds, pieces, texts)


def make_model(
    name: str, branches: dict, agreement: Agreement | None, step: int | None, with_prior: Agreement | None = None
) -> MeasuredModel:
    return MeasuredModel(name, f"runs/{name}", step, measure_rows(branches), agreement, with_prior)


# ---- folder --------------------------------------------------------------------------------------------------------


def test_files_appear_only_when_all_are_written(tmp_path):
    target = tmp_path / "new" / "out"
    with new_folder(target) as folder:
        (folder / "a.csv").write_text("a")
        assert [path.name for path in target.iterdir()] == [folder.name]
    assert [path.name for path in target.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_failure_leaves_everything_as_it_was(tmp_path, is_there):
    target = tmp_path / "new" / "out"
    if is_there:
        target.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), new_folder(target) as folder:
        (folder / "a.csv").write_text("a")
        raise KeyboardInterrupt
    assert target.is_dir() == is_there and (not is_there or not any(target.iterdir()))
    assert is_there or not any(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ValueError, match="is there already and not empty.*Give a new folder"), new_folder(target):
            pass
    with pytest.raises(ValueError, match="cannot be made .*Give another folder"), new_folder(tmp_path / "mine.txt/x"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"


# ---- tables and sentences ------------------------------------------------------------------------------------------


def test_rows_hold_means_quantiles_and_counts():
    branch = make_branch()
    branch.readings["encoder", "all"] = Readings(np.arange(11.0), np.arange(11.0) / 2, np.linspace(0, 1, 11))
    branch.readings["joint", "non-blank"] = make_readings(0)
    rows = {(row.source, row.view): row for row in measure_rows({"student": branch})}
    own = rows["encoder", "all"]
    assert (own.count, own.mean, own.median, own.ninetieth, own.pieces) == (11, 5.0, 5.0, 9.0, 2.5)
    assert own.blank == pytest.approx(0.5)
    empty = rows["joint", "non-blank"]
    assert (empty.count, empty.mean, empty.median, empty.ninetieth, empty.pieces, empty.blank) == (0, *[None] * 5)


def test_findings_put_encoder_and_joint_side_by_side():
    (all_frames, emitting) = findings(measure_rows({"teacher": make_branch()}))
    assert all_frames == (
        "teacher, all frames: mean entropy of the encoder 1.000 nats, 4.00 times the joint's 0.250, "
        "with the prior 0.750; "
        "among word pieces alone 0.500 nats, 4.00 times the joint's 0.125"
    )
    assert emitting.startswith("teacher, non-blank frames: ")
    of_head = make_branch()  # of a CTC head, which has no prior
    of_head.readings[WITH_PRIOR, "all"] = make_readings(0)
    assert "joint's 0.250; among" in findings(measure_rows({"teacher": of_head}))[0]
    assert "encoder 1.000 nats, the joint's 0.000" in findings(measure_rows({"x": make_branch(joint=0.0)}))[0]
    assert findings(measure_rows({"x": make_branch(rows=0)})) == []


# ---- pictures ------------------------------------------------------------------------------------------------------


def labels_of(figure) -> set[str]:
    return {label for axis in figure.axes for label in (axis.get_xlabel(), axis.get_ylabel()) if label}


def test_entropy_axes_reach_the_entropy_of_equal_logits_and_name_their_unit():
    figure = entropy_figure({"student": make_branch(), "teacher": make_branch(rows=0)})
    assert [axis.get_title() for axis in figure.axes] == [
        f"{name}: {view} frames" for name in ("student", "teacher") for view in VIEWS
    ]
    assert labels_of(figure) == {"entropy (nats)", "share with at most this entropy"}
    for axis in figure.axes:
        assert axis.get_xlim()[1] > math.log(6)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["encoder, mean 1.000", "joint, mean 0.250", "prediction, mean 0.500"]


def test_agreement_is_drawn_over_steps_or_over_models_in_order():
    agreements = [Agreement(10, 5, 8.0), Agreement(10, 9, 2.0)]
    by_step = agreement_figure(agreements, [100, 400], ["a", "b"])
    top1, kl = by_step.axes
    assert top1.lines[0].get_xydata().tolist() == [[100, 50], [400, 90]]
    assert kl.lines[0].get_xydata().tolist() == [[100, 0.8], [400, 0.2]]
    assert labels_of(by_step) >= {"optimizer step", "KL(teacher || student) (nats a frame)"}
    by_model = agreement_figure(agreements, None, ["a.nemo", "b.nemo"])
    assert [text.get_text() for text in by_model.axes[0].get_xticklabels()] == ["a.nemo", "b.nemo"]


def test_shifts_of_both_models_are_drawn_beside_their_agreement():
    shifts = [Shift(teacher=1.0, student=2.0, apart=0.5), Shift(teacher=3.0, student=4.0, apart=0.25)]
    figure = agreement_figure([Agreement(10, 5, 8.0)] * 2, [100, 400], ["a", "b"], shifts)
    lines = figure.axes[2].lines
    assert [line.get_ydata().tolist() for line in lines] == [[1.0, 3.0], [2.0, 4.0], [0.5, 0.25]]
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["teacher", "student", "apart"]


def test_an_utterance_is_cut_into_strips_that_share_one_scale_and_lose_no_frame():
    page = make_page(num_frames=70)  # 140 frames of the teacher
    figures = utterance_figures(page)
    spans = [figure.axes[0].get_xlim() for figure in figures]
    assert len(figures) == 3 and spans[0][0] == 0.0 and spans[-1][1] >= 70 * 0.08
    widths = {round(end - start, 9) for start, end in spans}
    assert len(widths) == 1 and round(widths.pop() / 0.08, 6).is_integer()
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
    shown = [text.get_text() for figure in figures for text in figure.axes[3].texts]
    assert len(shown) == 2 * 70  # two classes above 1% in every frame of the student, each in one strip
    wanted = {"amplitude", "frequency (Hz)", "student\nentropy (nats)", "teacher encoder:\nlikeliest", "time (s)"}
    assert all(labels_of(figure) >= wanted for figure in figures)
    emitted = [text.get_text() for text in figures[0].axes[2].texts]
    assert emitted == ["_a <c>", r"\$d"]


def test_silence_and_a_single_frame_are_drawn(tmp_path):
    own = FrameReadings(
        readings={source: make_readings(1, 0.0) for source in FRAME_SOURCES},
        classes=np.array([[5]]),
        probabilities=np.array([[1.0]]),
        states=np.array([0]),
        frames=np.array([], int),
        tokens=np.array([], int),
        first=np.array([], bool),
        emitting=np.array([]),
    )
    page = UtterancePage("x", "", np.zeros(320, np.float32), 16000, {"model": own}, {"model": 0.02}, {"model": PIECES})
    (figure,) = utterance_figures(page)
    figure.savefig(tmp_path / "x.png", dpi=DPI)
    assert [text.get_text() for text in figure.axes[3].texts] == ["∅"]


def test_word_pieces_are_written_so_that_they_can_be_read():
    assert piece_label("▁straße") == "_straße" and piece_label("▁a$b") == r"_a\$b"
    assert piece_label("▁\u4e2d") == "_U+4E2D"
    assert piece_label("▁internationalisation") == "_internationali…"


def test_long_word_pieces_get_higher_rows():
    page = make_page(num_frames=4)
    wider = UtterancePage(
        **{**vars(page), "pieces": {"student": PIECES, "teacher": ["▁internationally", *PIECES[1:]]}}
    )
    (low,), (high,) = utterance_figures(page), utterance_figures(wider)
    texts, axis = [text for text in high.axes[5].texts if "inter" in text.get_text()], high.axes[5]
    assert high.get_figheight() > low.get_figheight() and texts
    high.savefig(io.BytesIO(), dpi=DPI)  # lays everything out
    rank = axis.get_window_extent().height / 3
    assert all(text.get_window_extent().height < rank for text in texts)


# ---- page ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects ids, links, pictures and text; raises where an element is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.images, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.images += [attributes] if tag == "img" else []
        assert tag not in ("script", "link", "iframe")
        if tag not in TAGS_WITHOUT_END:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_stands_alone_and_every_link_leads_somewhere(tmp_path):
    branches = {"student": make_branch(), "teacher": make_branch()}
    priors = {1: None, 2: Agreement(10, 6, 5.0)}  # the first one's is not known
    models = [make_model(f"{n}.ckpt", branches, Agreement(10, n, 1.0), 100 * n, priors[n]) for n in (1, 2)]
    report = LogitReport(
        "test.json", 4, 9.5, 3, models, Analysis(branches), [make_page(num_frames=4), make_page("../c d", 26)]
    )
    path = write_logit_report(tmp_path, report)
    page = Page(path.read_text(encoding="utf-8"))
    assert len(set(page.ids)) == len(page.ids)
    assert {"#measures", "#agreement", "#utterance-0", "#utterance-1"} <= set(page.links)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    pngs = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pngs == [
        "agreement.png",
        "entropy.png",
        "utterance_000_a_b_.png",
        "utterance_001_.._c_d_0.png",
        "utterance_001_.._c_d_1.png",
    ]
    assert [row["top1_agreement_with_prior"] for row in rows_of(tmp_path / "agreement.csv")] == ["", "0.6"]
    text = path.read_text(encoding="utf-8")
    assert text.index(
        "Student and teacher name the same class in 20.0% of 10 encoder frames, with the prior in 60.0%."
    ) < (text.index("<nav>"))
    assert "student: 1 word error, teacher: 1 word error" in text
    assert re.search(r"student</th>\s*<td>a</td>\s*<td class=wrong>·</td>\s*<td>b</td>", text)
    assert re.search(r"teacher</th>\s*<td>a</td>\s*<td>&amp;</td>\s*<td class=wrong>c</td>", text)
    sounds = re.findall(r"data:audio/flac;base64,([A-Za-z0-9+/=]+)", text)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    assert len(sounds) == 2 and rate == 16000 and len(samples) == int(16000 * 4 * 0.08)
    assert len(page.images) == len(pngs)
    assert all(image["src"].startswith("data:image/png;base64,iVBOR") and image["alt"] for image in page.images)
    assert all(int(image["width"]) > 300 and int(image["height"]) > 100 for image in page.images)
    text = " ".join(page.words)
    for words in (
        "a <b>: a & b",
        "▁a",
        "<c>",
        "4 utterances",
        "The last of 2 models",
        "20.0%",
        "60.0%",
        "Definitions",
    ):
        assert words in text


def test_transcripts_of_right_to_left_scripts_are_aligned_in_their_direction(tmp_path):
    branches = {"student": make_branch()}
    models = [make_model("1.ckpt", branches, None, 1)]
    pages = [make_page(num_frames=4), replace(make_page("two", 4), text="5: שלום עולם")]
    path = write_logit_report(tmp_path, LogitReport("test.json", 2, 2.0, 3, models, Analysis(branches), pages))
    text = path.read_text(encoding="utf-8")
    assert re.findall(r'<table class="aligned" dir="(\w+)">', text) == ["ltr", "rtl"]


def test_the_tables_hold_what_was_measured(tmp_path):
    branches = {"student": make_branch(), "teacher": make_branch(encoder=2.0)}
    first = make_model("a.ckpt", branches, Agreement(10, 5, 1.0), 7, Agreement(10, 6, 2.0))
    models = [first, make_model("b.nemo", branches, None, None)]
    write_logit_report(
        tmp_path, LogitReport("test.json", 1, 2.0, 2, models, Analysis(branches), [make_page(num_frames=4)])
    )
    measures = rows_of(tmp_path / "measures.csv")
    assert len(measures) == 2 * 2 * len(SOURCES) * len(VIEWS)
    own = [row for row in measures if row["branch"] == "teacher" and row["logits"] == "encoder"]
    assert [(row["model"], row["step"]) for row in own] == [("runs/a.ckpt", "7")] * 2 + [("runs/b.nemo", "")] * 2
    assert {float(row["entropy_mean"]) for row in own} == {2.0} and {row["rows"] for row in own} == {"20"}
    (agreement,) = rows_of(tmp_path / "agreement.csv")
    assert (agreement["step"], agreement["top1_agreement"], agreement["kl_nats_per_frame"]) == ("7", "0.5", "0.1")
    with_prior = agreement["top1_agreement_with_prior"], agreement["kl_nats_per_frame_with_prior"]
    assert with_prior == ("0.6", "0.2")
    assert not (tmp_path / "agreement.png").exists()  # nothing to draw a curve through
    confusions = rows_of(tmp_path / "confusions.csv")
    assert [row["reference"] for row in confusions[:4]] == ["▁a", "▁a", "<c>", "<c>"] and len(confusions) == 8
    assert [row["rank"] for row in confusions[:2]] == ["1", "2"] and confusions[0]["emitted"] == "2"
    frames = rows_of(tmp_path / "frames.csv")
    assert len(frames) == 4 + 8
    assert [row["emits"] for row in frames[:4]] == ["", "▁a <c>", "$d", ""]
    assert float(frames[3]["start_s"]) == 0.24 and float(frames[3]["joint_piece_entropy"]) == 0.25
    assert frames[0]["top"] == "▁a:0.7000 b:0.2000 <c>:0.0050"


def test_a_lone_model_without_transcripts_has_a_page_too(tmp_path):
    branch = make_branch(rows=0)
    branch.confusions = Confusions()
    models = [make_model("a.nemo", {"model": branch}, None, None)]
    path = write_logit_report(tmp_path, LogitReport("test.json", 1, 2.0, 2, models, Analysis({"model": branch}), []))
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(page.words)
    assert "all transcripts are empty" in text and "–" in text
    assert "#agreement" not in page.links and "#utterances" not in page.links
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["confusions.csv", "entropy.png", "measures.csv", "report.html"]
