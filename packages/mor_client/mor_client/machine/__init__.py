"""All services of MoR on one machine, from one file: ``mor up``.

::

    machine_file ─▶ machine_folder ─▶ programs ─▶ supervisor     processes, restarted where they end
                    (secrets, tokens)              └─▶ supervised_process ─▶ rotated_log
"""
