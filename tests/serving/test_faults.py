"""A fault of the server: its job fails, others do not, and nothing of a request reaches log or client."""

from types import SimpleNamespace

from ift_components.errors import ConfigError
from ift_components.serving.jobs import Failed
from ift_components.serving.metrics import Metrics
from ift_components.serving.worker import Worker


def test_a_fault_ends_its_job_alone_and_tells_no_text(caplog):
    worker = Worker({}, batch_size=2, batch_wait=0, image_cache=1, metrics=Metrics())
    ended = []
    job = SimpleNamespace(end=ended.append)

    def fail(error):
        raise error

    worker._guarded([job], fail, RuntimeError("the patient's name"))
    worker._guarded([job], fail, ConfigError("layer: 9 is not one of 0 to 3"))
    worker._guarded([job], lambda: None)
    assert ended == [Failed("the server failed (RuntimeError)"), Failed("layer: 9 is not one of 0 to 3", is_users=True)]
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["RuntimeError in test_faults.py"]
    assert "patient" not in caplog.text
