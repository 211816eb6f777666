"""Tools for working on the pack: its host, the server, the checks. The pack itself imports none of this."""
