"""Prepared folders and everything that reads or writes them."""

from ift_components.data.dataset import ReportDataset as report_dataset  # noqa: N813 (named as torchtune names datasets)

__all__ = ["report_dataset"]
