"""MoR's central experiment: a mixture of private reward models compared with the alternatives of a server.

Read in this order: ``population`` (interface of the clients and their questions) and ``populations``,
``group_scores`` (input of an arm), ``arms`` (one file each),
``ranking``, ``optimum`` and ``attacks`` (comparison of arms), ``questions`` and ``experiment`` (the whole).
"""
