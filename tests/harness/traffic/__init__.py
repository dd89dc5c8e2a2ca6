"""The load, flow and ledger harness of the scenarios.

load      `Traffic` asks a site at a constant rate, whatever becomes of the requests before (an open loop): GET and
          POST, new and kept-alive connections, and always a slow request in flight.
flow      The POSTs start tasks; `Traffic.sent` has the ids that the site gave back. Beat sends a tick every second.
ledger    Every task writes START and END to a file outside of the database: the application in overlay/ does, which
          `versions` adds to a copy of the project.
verdict   What must be true of all that, as assertions that name the first offenders.

By hand, against a site that runs: PYTHONPATH=molecule/shared python -m traffic https://127.0.0.1:8443 --seconds 30
"""

from traffic.ledger import Entry, Ledger
from traffic.load import Sample, Sent, Traffic

__all__ = ["Entry", "Ledger", "Sample", "Sent", "Traffic"]
