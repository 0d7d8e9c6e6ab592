"""The harness that proves the promise: a sender's ledger, faults, and an oracle that compares what came of both."""
