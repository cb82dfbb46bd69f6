"""The teacher: a model behind an OpenAI-compatible endpoint, asked within a budget, never twice."""

from data_pipeline.taskgen.teacher.budget import Spend
from data_pipeline.taskgen.teacher.client import BudgetExceeded, Reply, Teacher, TeacherError
from data_pipeline.taskgen.teacher.settings import Settings

__all__ = ["BudgetExceeded", "Reply", "Settings", "Spend", "Teacher", "TeacherError"]
