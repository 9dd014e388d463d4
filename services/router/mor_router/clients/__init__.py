"""The clients: who they are, where they may be, and how they are asked. Nothing that they say is trusted here."""
