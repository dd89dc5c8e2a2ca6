"""The load, flow and ledger harness of the scenarios.

load      `Traffic` sends requests at a constant rate, independent of the answers (an open loop): GET and POST, new and
          kept-alive connections, and always a slow request in flight.
tasks     The POSTs start tasks; `Traffic.sent` has the ids that the site returned. Beat sends a tick every second.
ledger    Every task writes START and END to a file outside of the database: the application in overlay/ does, which
          `versions` adds to a copy of the project.
verdict   Assertions about all of these, whose messages name the first offenders.

By hand, against a running site: PYTHONPATH=tests/harness python -m traffic https://127.0.0.1:8443 --seconds 30
"""

from traffic.ledger import Entry, Ledger
from traffic.load import Sample, Sent, Traffic

__all__ = ["Entry", "Ledger", "Sample", "Sent", "Traffic"]
