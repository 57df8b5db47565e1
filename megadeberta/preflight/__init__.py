"""All that can be checked about a run without torch, in a second, before any process waits for another."""
