"""What scores reveal of the demonstration's private data, and what bounds cost: one module for each part.

Each part has ``measure(state, quick)``, which returns its figures; ``state`` keeps data and models between runs.
"""
