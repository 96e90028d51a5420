"""Prepared folders and everything that reads or writes them."""

# Components are functions to YAML, and named as torchtune names datasets.
from ift_components.data.dataset import ReportDataset as report_dataset  # noqa: N813
from ift_components.data.mixture import MixtureDataset as mixture  # noqa: N813
from ift_components.data.question_dataset import QuestionDataset as question_dataset  # noqa: N813

__all__ = ["mixture", "question_dataset", "report_dataset"]
