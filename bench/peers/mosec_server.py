"""mosec, batches of up to 32: `python -m bench.peers.mosec_server --port PORT`."""

from mosec import Server, Worker

from bench import peers
from loadtest.body import MSGPACK

# As in our archives: a free worker takes what is queued, and waits 1 ms for company.
LARGEST_BATCH = 32
WAIT_MS = 1


class Inference(Worker):
    """The only stage: one process, which decodes, computes and answers one batch after another."""

    resp_mime_type = MSGPACK

    def __init__(self) -> None:
        self.policy = peers.load()

    def deserialize(self, data: bytes) -> bytes:
        """Leave the body to `forward`."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """Answer a batch."""
        return peers.answers(self.policy, data)

    def serialize(self, data: bytes) -> bytes:
        """Return what `forward` made."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=LARGEST_BATCH, max_wait_time=WAIT_MS)
    server.run()
