"""Tools for working on the pack: set-up of ComfyUI, the server, the checks. The pack itself imports none of this."""
