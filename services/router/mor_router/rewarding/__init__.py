"""Groups in, rewards out, with an account of what every client said and counted for."""
