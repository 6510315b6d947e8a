"""The loss under the names and in the argument orders of well-known scripts."""
