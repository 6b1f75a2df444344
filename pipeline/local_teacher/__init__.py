"""A teacher process on loopback that speaks the providers' wire formats and whose accuracy is known.

``python -m pipeline.local_teacher --help`` starts one by hand; ``LocalTeacher`` runs one for a stage.
"""

from __future__ import annotations

from pipeline.local_teacher.answers import true_accuracy
from pipeline.local_teacher.options import TeacherOptions
from pipeline.local_teacher.process import LocalTeacher

__all__ = ["LocalTeacher", "TeacherOptions", "true_accuracy"]
