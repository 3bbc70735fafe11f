"""harness: what one measurement is. The case, the routing, the oracle, the timers, the bytes, the record.

Importing the package, `harness.case`, `harness.record` and `harness.job` never imports torch.
Start reading at `harness.case`, then `harness.record`, then `harness.measure`.
"""
