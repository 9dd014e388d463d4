"""Faults in a whole MoR of real processes, drawn from a seed, and what must hold under them.

::

    campaign ─▶ faults ─▶ cluster ─▶ service_process     processes, restarted as Kubernetes does
        │                    └─────▶ link_proxy          a TCP proxy on every link
        ├─▶ observers                                    what a user sees: steps, event streams, memory
        ├─▶ invariants                                   what must hold, checked from outside
        └─▶ chaos_report                                 JSON, table, how to replay

``python -m tests.chaos --help`` and ``make chaos`` run it; docs/operating.md has its results.
"""
