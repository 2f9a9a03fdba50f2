"""Sources of the teacher's `BranchOutput`, one class a file. The table of them is `config.teachers.TEACHERS`."""

from nemo_codert.teachers.base import Teacher, build_teacher

__all__ = ["Teacher", "build_teacher"]
