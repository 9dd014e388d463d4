"""MoR's central experiment: does a mixture of private reward models rank better than what else a server could do?

Read in this order: ``population`` (who the clients are), ``scored`` (what an arm sees), ``arms`` (one file each),
``ranking``, ``optimum`` and ``hostile`` (how arms are compared), ``questions`` and ``experiment`` (all of it).
"""
