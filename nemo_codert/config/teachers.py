"""Table of the sources of the teacher's output: the values of `model.codert.teacher` and the classes behind them.

A new source is one file in `nemo_codert/teachers` and one entry here. Imports nothing.
"""

TEACHERS: dict[str, str | type] = {
    "co_trained": "nemo_codert.teachers.live.CoTrained",
    "frozen": "nemo_codert.teachers.live.Frozen",
    "cached": "nemo_codert.teachers.cached.Cached",
    "ema": "nemo_codert.teachers.ema.Ema",
}
HEAD_LOGITS = ("ctc", "ctc_alone")  # values of `model.codert.teacher_logits` that read a CTC head
WITHOUT_GRADIENT = ("frozen", "cached", "ema")  # sources whose networks no optimizer moves
