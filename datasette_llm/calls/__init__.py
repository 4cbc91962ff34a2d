"""One prompt, chain or group, from admission to its end."""
